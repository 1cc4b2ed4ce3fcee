//! What may stand in a struct that derives `Module`.
//!
//! One trait for all of it, so that the derive need not know the types: parameters and modules show themselves, containers pass the
//! question on, plain settings have nothing to show.

use crate::{Buffer, Member, Mode, Module, Rebuild, Visitor};
use orkest_core::op::Unary;
use orkest_core::{DType, Device, Interpolation, PadMode, Param, Resize, Scalar, Shape, Size2, Tensor};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// What can be a field of a module: parameters, buffers, modules, containers of those, and plain settings.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a field of a module as it is",
    label = "neither a parameter, a buffer, a module nor a plain setting",
    note = "a trained tensor is a `Param`, a constant one a `Buffer`; a struct of layers needs `#[derive(Module)]`",
    note = "`#[module(skip)]` on the field leaves it out of state dicts and device moves"
)]
pub trait Field {
    /// Shows what is in the field, which is called `name`.
    fn visit_field<'a>(&'a self, name: &str, visitor: &mut Visitor<'_, 'a>);

    /// The same field with every member as `rebuild` gives it back.
    fn rebuild_field(&self, rebuild: &mut Rebuild) -> Self
    where
        Self: Sized;
}

impl<M: Module> Field for M {
    fn visit_field<'a>(&'a self, name: &str, visitor: &mut Visitor<'_, 'a>) {
        visitor(name, Member::Module(self));
    }
    fn rebuild_field(&self, rebuild: &mut Rebuild) -> Self {
        self.rebuild(rebuild)
    }
}

macro_rules! leaf_fields {
    ($($t:ident $method:ident),*) => {$(
        impl Field for $t {
            fn visit_field<'a>(&'a self, name: &str, visitor: &mut Visitor<'_, 'a>) {
                visitor(name, Member::$t(self));
            }
            fn rebuild_field(&self, rebuild: &mut Rebuild) -> Self {
                rebuild.$method(self)
            }
        }
    )*};
}
leaf_fields!(Param param, Buffer buffer, Mode mode);

impl<T: Field> Field for Option<T> {
    fn visit_field<'a>(&'a self, name: &str, visitor: &mut Visitor<'_, 'a>) {
        if let Some(field) = self {
            field.visit_field(name, visitor);
        }
    }
    fn rebuild_field(&self, rebuild: &mut Rebuild) -> Self {
        self.as_ref().map(|field| field.rebuild_field(rebuild))
    }
}

/// Elements are named by their position: `layers.0`, `layers.1`.
fn visit_elements<'a, T: Field>(elements: &'a [T], name: &str, visitor: &mut Visitor<'_, 'a>) {
    for (i, element) in elements.iter().enumerate() {
        element.visit_field(&format!("{name}.{i}"), visitor);
    }
}

impl<T: Field> Field for Vec<T> {
    fn visit_field<'a>(&'a self, name: &str, visitor: &mut Visitor<'_, 'a>) {
        visit_elements(self, name, visitor);
    }
    fn rebuild_field(&self, rebuild: &mut Rebuild) -> Self {
        self.iter().map(|element| element.rebuild_field(rebuild)).collect()
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    fn visit_field<'a>(&'a self, name: &str, visitor: &mut Visitor<'_, 'a>) {
        visit_elements(self, name, visitor);
    }
    fn rebuild_field(&self, rebuild: &mut Rebuild) -> Self {
        std::array::from_fn(|i| self[i].rebuild_field(rebuild))
    }
}

impl<T: Field> Field for BTreeMap<String, T> {
    fn visit_field<'a>(&'a self, name: &str, visitor: &mut Visitor<'_, 'a>) {
        for (key, element) in self {
            element.visit_field(&format!("{name}.{key}"), visitor);
        }
    }
    fn rebuild_field(&self, rebuild: &mut Rebuild) -> Self {
        self.iter().map(|(key, element)| (key.clone(), element.rebuild_field(rebuild))).collect()
    }
}

macro_rules! tuple_fields {
    ($($t:ident $i:tt),*) => {
        impl<$($t: Field),*> Field for ($($t,)*) {
            fn visit_field<'a>(&'a self, name: &str, visitor: &mut Visitor<'_, 'a>) {
                $(self.$i.visit_field(&format!("{name}.{}", $i), visitor);)*
            }
            fn rebuild_field(&self, rebuild: &mut Rebuild) -> Self {
                ($(self.$i.rebuild_field(rebuild),)*)
            }
        }
    };
}
tuple_fields!(A 0);
tuple_fields!(A 0, B 1);
tuple_fields!(A 0, B 1, C 2);
tuple_fields!(A 0, B 1, C 2, D 3);
tuple_fields!(A 0, B 1, C 2, D 3, E 4);
tuple_fields!(A 0, B 1, C 2, D 3, E 4, F 5);

macro_rules! plain_fields {
    ($({$($generics:tt)*} $t:ty),* $(,)?) => {$(
        impl<$($generics)*> Field for $t {
            fn visit_field<'a>(&'a self, _name: &str, _visitor: &mut Visitor<'_, 'a>) {}
            fn rebuild_field(&self, _rebuild: &mut Rebuild) -> Self {
                self.clone()
            }
        }
    )*};
}
plain_fields!(
    {} bool, {} char, {} String, {} &'static str, {} (),
    {} u8, {} u16, {} u32, {} u64, {} usize, {} i8, {} i16, {} i32, {} i64, {} isize, {} f32, {} f64,
    {} DType, {} Device, {} Scalar, {} Shape, {} Unary, {} Size2, {} Resize, {} Interpolation, {} PadMode, {} fn(&Tensor) -> Tensor, {T: ?Sized} PhantomData<T>,
);
