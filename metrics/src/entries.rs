//! The macros of the catalogue: a set of families is a struct, and each of its fields an entry.

macro_rules! definition {
    ($family:ty, $name:literal, $unit:ident, $help:literal) => {
        Definition {
            name: $name,
            kind: <$family as Family>::KIND,
            unit: Unit::$unit,
            labels: <$family as Family>::LABELS,
            help: $help,
        }
    };
}

macro_rules! catalogue {
    ($( $(#[$doc:meta])* struct $set:ident {
        $( $field:ident: $family:ty = $name:literal, $unit:ident, $help:literal; )+
    } )+) => { $(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $set { $( #[doc = $help] pub $field: $family, )+ }

        impl $set {
            /// The catalogue's entries for these families, in order.
            pub const DEFINITIONS: &'static [Definition] =
                &[ $( definition!($family, $name, $unit, $help), )+ ];

            /// Creates every family and registers it in `registry`.
            pub(crate) fn register(registry: &Registry) -> Result<Self, CatalogueError> {
                Ok(Self { $(
                    $field: Family::register(
                        registry,
                        &definition!($family, $name, $unit, $help),
                    )?,
                )+ })
            }
        }
    )+ };
}

pub(crate) use {catalogue, definition};
