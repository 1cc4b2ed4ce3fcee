//! `#[derive(Module)]`: parameters, buffers and nested modules from the fields of a struct.
//!
//! The derive comes in two spellings because a macro cannot see how its user reached it: [`Module`](macro@Module) writes paths
//! through `::orkest_nn`, [`FacadeModule`](macro@FacadeModule) through `::orkest::nn`. The facade exports the second one under the
//! name `Module`, so that programs need no dependency besides `orkest`.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DeriveInput, Error, Fields, Ident, Index, LitStr, Member, Path, Result, Type,
    parse_quote,
};

/// Implements `orkest_nn::Module` and `Display` for a struct.
///
/// Every field must be a parameter, a buffer, a module, a container of them, or a plain setting (a number, a string, ..).
///
/// | attribute | on | meaning |
/// |---|---|---|
/// | `#[module(skip)]` | a field | any other type; it has to be `Clone` |
/// | `#[module(rename = "LayerNorm")]` | a field | its name in state dicts |
/// | `#[module(extra_repr)]` | the struct | the method `fn extra_repr(&self) -> String` gives the text between the parentheses |
/// | `#[module(no_display)]` | the struct | it implements `Display` itself |
/// | `#[module(crate = path)]` | the struct | where `orkest_nn` is to be found |
#[proc_macro_derive(Module, attributes(module))]
pub fn derive_module(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    derive(input, parse_quote!(::orkest_nn))
}

/// [`Module`](macro@Module) for programs that depend on the crate `orkest` only.
#[proc_macro_derive(FacadeModule, attributes(module))]
pub fn derive_facade_module(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    derive(input, parse_quote!(::orkest::nn))
}

fn derive(input: proc_macro::TokenStream, root: Path) -> proc_macro::TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    expand(&input, root).unwrap_or_else(Error::into_compile_error).into()
}

/// What `#[module(..)]` says about the struct.
struct Options {
    root: Path,
    extra_repr: bool,
    display: bool,
}

fn struct_options(attributes: &[Attribute], root: Path) -> Result<Options> {
    let mut options = Options { root, extra_repr: false, display: true };
    for attribute in attributes.iter().filter(|a| a.path().is_ident("module")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("extra_repr") {
                options.extra_repr = true;
            } else if meta.path.is_ident("no_display") {
                options.display = false;
            } else if meta.path.is_ident("crate") {
                options.root = meta.value()?.parse()?;
            } else {
                return Err(meta.error("expected extra_repr, no_display or crate = path"));
            }
            Ok(())
        })?;
    }
    Ok(options)
}

/// One field of the struct.
struct Field<'a> {
    member: Member,
    ty: &'a Type,
    name: String,
    skip: bool,
}

fn fields(fields: &Fields) -> Result<Vec<Field<'_>>> {
    fields.iter().enumerate().map(|(i, field)| parse_field(i, field)).collect()
}

fn parse_field(i: usize, field: &syn::Field) -> Result<Field<'_>> {
    let member = match &field.ident {
        Some(ident) => Member::Named(ident.clone()),
        None => Member::Unnamed(Index::from(i)),
    };
    let name = field
        .ident
        .as_ref()
        .map_or(i.to_string(), |ident| ident.to_string().trim_start_matches("r#").to_string());
    let mut parsed = Field { member, ty: &field.ty, name, skip: false };
    for attribute in field.attrs.iter().filter(|a| a.path().is_ident("module")) {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("skip") {
                parsed.skip = true;
            } else if meta.path.is_ident("rename") {
                parsed.name = meta.value()?.parse::<LitStr>()?.value();
            } else {
                return Err(meta.error("expected skip or rename = \"name\""));
            }
            Ok(())
        })?;
    }
    Ok(parsed)
}

fn expand(input: &DeriveInput, root: Path) -> Result<TokenStream> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(
            &input.ident,
            "derive(Module) is for structs; hold the variants of an enum as Option fields or as an AnyLayer",
        ));
    };
    let Options { root, extra_repr, display } = struct_options(&input.attrs, root)?;
    let fields = fields(&data.fields)?;
    let name = &input.ident;
    let name_text = name.to_string();

    let mut generics = input.generics.clone();
    for parameter in used_type_parameters(input, &fields) {
        generics.make_where_clause().predicates.push(parse_quote!(#parameter: #root::Field));
    }
    for ty in fields.iter().filter(|f| f.skip).map(|f| f.ty).filter(|ty| mentions_any(ty, input)) {
        generics.make_where_clause().predicates.push(parse_quote!(#ty: ::core::clone::Clone));
    }
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();

    // Spans of the field's type make the compiler point at the field when the type does not fit.
    let visits = fields.iter().filter(|f| !f.skip).map(|Field { member, ty, name, .. }| {
        quote_spanned!(at(ty)=> #root::Field::visit_field(&self.#member, #name, visitor);)
    });
    let rebuilds = fields.iter().map(|Field { member, ty, skip, .. }| match skip {
        true => quote_spanned!(at(ty)=> #member: ::core::clone::Clone::clone(&self.#member)),
        false => quote_spanned!(at(ty)=> #member: #root::Field::rebuild_field(&self.#member, rebuild)),
    });
    let extra_repr = extra_repr.then(|| {
        quote! { fn extra_repr(&self) -> ::std::string::String { Self::extra_repr(self) } }
    });
    let display = display.then(|| {
        quote! {
            #[automatically_derived]
            impl #impl_generics ::core::fmt::Display for #name #type_generics #where_clause {
                fn fmt(&self, formatter: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                    formatter.write_str(&#root::repr(self))
                }
            }
        }
    });

    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics #root::Module for #name #type_generics #where_clause {
            fn type_name(&self) -> &str {
                #name_text
            }
            #extra_repr
            fn visit<'visit>(&'visit self, visitor: &mut #root::Visitor<'_, 'visit>) {
                let _ = visitor;
                #(#visits)*
            }
            fn rebuild(&self, rebuild: &mut #root::Rebuild) -> Self {
                let _ = &rebuild;
                Self { #(#rebuilds),* }
            }
        }
        #display
    })
}

/// The place of the type, with names looked up as if the derive had written them.
fn at(ty: &Type) -> Span {
    ty.span().resolved_at(Span::call_site())
}

/// The type parameters that occur in a field that is not skipped. Markers (`PhantomData<T>`) hold no `T`.
fn used_type_parameters(input: &DeriveInput, fields: &[Field<'_>]) -> Vec<Ident> {
    let used = |parameter: &Ident| {
        fields.iter().any(|f| {
            !f.skip
                && mentions(f.ty.to_token_stream(), parameter)
                && !mentions(f.ty.to_token_stream(), &format_ident!("PhantomData"))
        })
    };
    input.generics.type_params().map(|p| p.ident.clone()).filter(used).collect()
}

fn mentions_any(ty: &Type, input: &DeriveInput) -> bool {
    input.generics.type_params().any(|p| mentions(ty.to_token_stream(), &p.ident))
}

fn mentions(tokens: TokenStream, ident: &Ident) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(i) => i == *ident,
        TokenTree::Group(group) => mentions(group.stream(), ident),
        _ => false,
    })
}
