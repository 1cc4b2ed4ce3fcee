//! What losses with options have in common: setters, a reduction, and how they print.

/// A loss with options that have defaults. Its `forward` is written by hand.
macro_rules! loss {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$field_doc:meta])* $field:ident: $t:ty = $default:expr,)* } reduction: $reduction:ident
    ) => {
        $(#[$doc])*
        #[derive(Module, Clone, Debug)]
        #[module(extra_repr)]
        pub struct $name {
            $($field: $t,)*
            reduction: Reduction,
        }

        impl $name {
            /// With PyTorch's defaults.
            pub fn new() -> $name {
                $name { $($field: $default,)* reduction: Reduction::$reduction }
            }

            $(
                $(#[$field_doc])*
                pub fn $field(mut self, $field: $t) -> $name {
                    self.$field = $field;
                    self
                }
            )*

            #[doc = concat!("[`Reduction::", stringify!($reduction), "`] unless this says otherwise.")]
            pub fn reduction(mut self, reduction: Reduction) -> $name {
                self.reduction = reduction;
                self
            }

            fn extra_repr(&self) -> String {
                let options = String::new() $(+ stringify!($field) + &format!("={:?}, ", self.$field))*;
                options + &format!("reduction='{}'", self.reduction.name())
            }
        }

        impl Default for $name {
            fn default() -> $name {
                $name::new()
            }
        }
    };
}

pub(super) use loss;
