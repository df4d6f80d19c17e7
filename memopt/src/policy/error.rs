//! What can be wrong with a policy.

/// A policy that cannot be used, with the place in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The file is larger than any policy.
    #[error("{file} is larger than {limit} bytes: is it a policy?")]
    TooLong {
        /// Its name.
        file: String,
        /// What is read at most.
        limit: usize,
    },
    /// It is no TOML.
    #[error("{file}:{line}: {what}")]
    Syntax {
        /// Its name.
        file: String,
        /// From 1.
        line: usize,
        /// What the parser says.
        what: String,
    },
    /// A field says what no policy can say.
    #[error("{file}:{line}: {field}: {what}")]
    Field {
        /// Its name.
        file: String,
        /// From 1.
        line: usize,
        /// The field, with the tables that it is in: `balloon.reserve`, `guest[0].min`.
        field: String,
        /// What is wrong, and what would be right.
        what: String,
    },
}
