//! A guest in a file.

/// Failure to save a guest to a file or to restore it.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {}
