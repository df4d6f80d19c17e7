//! The files that an image is based on.
//!
//! The image's maker chooses their paths, and another program may replace what is there by a link
//! at any time. So a file is found first, links and all; then its place is checked, and this same
//! file is opened.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regular_file::Found;
use regular_file::opened::{is_same, path_of};

use super::FORMAT;
use super::header::Header;
use crate::sys::file::{despite_lease, make_blocking};

/// A file that an image is based on. It is only read.
#[derive(Debug, Clone)]
pub(in crate::virtio::block) struct Backing {
    /// Path without links.
    pub(in crate::virtio::block) path: PathBuf,
    /// The open file.
    pub(in crate::virtio::block) file: Arc<File>,
    /// Most memory for its tables, in bytes.
    pub(super) tables_bytes: u64,
}

/// The files below an image.
#[derive(Debug, Clone)]
pub(super) struct Below {
    /// The folder of the image, in which all of them must be; `None` if its path does not lead to
    /// it: it has no name yet, or was moved or replaced.
    folder: Option<PathBuf>,
    opened: Vec<Backing>,
    /// Files that another process has opened.
    handed: Vec<Arc<File>>,
}

impl Below {
    /// Begins with the image in `file`, found at `path`, before any file below it is open here.
    pub(super) fn new(path: &Path, file: &File, handed: &[Arc<File>]) -> Self {
        let place = path_of(file).ok();
        let place = place.filter(|place| path.canonicalize().is_ok_and(|found| found == *place));
        let folder = place.and_then(|place| place.parent().map(Path::to_owned));
        Self { folder, opened: Vec::new(), handed: handed.to_vec() }
    }

    /// Returns the files that were opened, the nearest one first.
    pub(super) fn opened(&self) -> &[Backing] {
        &self.opened
    }

    /// Returns the path at which an image has a backing file that it calls `named`.
    pub(super) fn path(&self, named: &str) -> PathBuf {
        self.folder.as_deref().unwrap_or(Path::new("")).join(named)
    }

    /// Opens the file at `path` as one of this format, unless it is open already; returns it with
    /// its path without links.
    ///
    /// # Errors
    /// If it is not in the folder of the image, or cannot be read.
    pub(super) fn open(&mut self, path: &Path, format: &str) -> io::Result<(PathBuf, Arc<File>)> {
        let Some(folder) = &self.folder else {
            return refused("the image was moved or replaced meanwhile: try again");
        };
        let found = Found::at(path)?;
        let path = path_of(found.file())?;
        if path.parent() != Some(folder) {
            return refused(
                "only files in the folder of the image are read: move it there, and tell the image by \
                 `qemu-img rebase -u -b FILE -F FORMAT`",
            );
        }
        if let Some(known) = self.opened.iter().find(|known| known.path == path) {
            return Ok((path, Arc::clone(&known.file)));
        }
        let own = found.file().metadata()?;
        let is_it = |handed: &&Arc<File>| handed.metadata().is_ok_and(|its| is_same(&its, &own));
        let file = match self.handed.iter().find(is_it) {
            Some(handed) => Arc::clone(handed),
            None => Arc::new(despite_lease(|| found.open())?),
        };
        make_blocking(&file)?;
        let image = (format == FORMAT).then(|| Header::read(&file)).transpose()?;
        let tables_bytes = image.map_or(0, |header| header.tables_bytes());
        self.opened.push(Backing { path: path.clone(), file: Arc::clone(&file), tables_bytes });
        Ok((path, file))
    }
}

fn refused<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}
