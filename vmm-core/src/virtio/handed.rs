//! Open files that another process has opened for a device of this one: a guest's process is
//! confined to the files that its guest has when it starts, and a device that is attached later
//! needs others.

use std::fs::File;
use std::sync::Arc;

/// The files; equal only to themselves.
#[derive(Debug, Clone)]
pub(super) struct HandedFiles(Arc<[Arc<File>]>);

impl HandedFiles {
    /// The files of a device, in an order that depends on its kind.
    pub(super) fn new(files: Vec<File>) -> Self {
        Self(files.into_iter().map(Arc::new).collect())
    }

    /// Returns the files.
    pub(super) fn files(&self) -> &[Arc<File>] {
        &self.0
    }
}

impl PartialEq for HandedFiles {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for HandedFiles {}
