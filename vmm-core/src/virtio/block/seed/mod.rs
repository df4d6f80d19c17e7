//! A small disk with documents that a guest's system reads when it boots, as cloud-init's NoCloud
//! data source does.
//!
//! The documents are part of the guest's configuration, with which they migrate and are saved. The
//! disk is made of them in memory: no file of a host belongs to it.

mod device;

use std::fmt;
use std::io::{self, Cursor, Write};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use serde::{Deserialize, Serialize};

use crate::virtio::DeviceError;

pub(crate) use device::SeedDevice;

/// Most bytes of all documents of a disk together.
pub const SEED_BYTES_MAX: usize = 128 << 10;
/// Most documents of a disk.
const DOCUMENTS_MAX: usize = 8;
/// Longest name of a document, in bytes.
const NAME_BYTES_MAX: usize = 32;
/// Size of the disk: room for the documents and for what a file system needs.
const DISK_BYTES: usize = 256 << 10;
/// Size of the unit in which the file system gives its files space.
const CLUSTER_BYTES: u32 = 512;
/// Name of the file system, by which cloud-init finds it.
const LABEL: [u8; 11] = *b"CIDATA     ";

/// The documents of a seed disk.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedConfig {
    documents: Vec<Document>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    name: String,
    content: Vec<u8>,
}

impl SeedConfig {
    /// Returns the configuration of a disk with these documents: file names and contents.
    ///
    /// # Errors
    /// [`DeviceError::Config`] if a name occurs twice or is not plain, or the documents are more
    /// than [`SEED_BYTES_MAX`] together.
    pub fn new(
        documents: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Result<Self, DeviceError> {
        let document = |(name, content)| Document { name, content };
        let config = Self { documents: documents.into_iter().map(document).collect() };
        config.check()?;
        Ok(config)
    }

    /// Returns the names of the documents.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.documents.iter().map(|document| document.name.as_str())
    }

    /// Returns the content of a document.
    pub fn document(&self, name: &str) -> Option<&[u8]> {
        let found = self.documents.iter().find(|document| document.name == name);
        found.map(|document| &document.content[..])
    }

    /// As [`SeedConfig::new`], for one that may have come from a peer or a file.
    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        let refuse = |what: String| Err(DeviceError::Config(what));
        if self.documents.len() > DOCUMENTS_MAX {
            return refuse(format!("a seed has at most {DOCUMENTS_MAX} documents"));
        }
        let bytes: usize = self.documents.iter().map(|document| document.content.len()).sum();
        if bytes > SEED_BYTES_MAX {
            return refuse(format!(
                "a seed has at most {} KiB of documents, not {bytes} bytes",
                SEED_BYTES_MAX >> 10
            ));
        }
        let is_plain = |c: char| c.is_ascii_lowercase() || c == '-';
        for (index, Document { name, .. }) in self.documents.iter().enumerate() {
            if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_plain) {
                return refuse(format!("a seed has no document {name:?}: a-z and - are possible"));
            }
            if self.documents[..index].iter().any(|other| other.name == *name) {
                return refuse(format!("a seed has two documents {name}"));
            }
        }
        Ok(())
    }

    /// Returns the content of the disk.
    ///
    /// # Errors
    /// If it cannot be made of the documents.
    #[cfg(feature = "fuzzing")]
    pub fn disk(&self) -> io::Result<Vec<u8>> {
        self.image()
    }

    /// Returns the content of the disk: a FAT file system, always the same for the same documents.
    fn image(&self) -> io::Result<Vec<u8>> {
        let mut image = vec![0; DISK_BYTES];
        let format = FormatVolumeOptions::new()
            .fat_type(FatType::Fat12)
            .bytes_per_cluster(CLUSTER_BYTES)
            .volume_label(LABEL);
        fatfs::format_volume(Cursor::new(&mut image[..]), format)?;
        let disk = FileSystem::new(Cursor::new(&mut image[..]), FsOptions::new())?;
        for Document { name, content } in &self.documents {
            disk.root_dir().create_file(name)?.write_all(content)?;
        }
        disk.unmount()?;
        Ok(image)
    }
}

/// Documents may have passwords and keys: only their names and sizes are shown.
impl fmt::Debug for SeedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let documents = self.documents.iter();
        f.debug_map()
            .entries(documents.map(|document| (&document.name, document.content.len())))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn seed(documents: &[(&str, &[u8])]) -> Result<SeedConfig, DeviceError> {
        SeedConfig::new(documents.iter().map(|(name, text)| ((*name).to_owned(), text.to_vec())))
    }

    #[test]
    fn the_disk_has_the_documents() {
        let large = vec![b'#'; SEED_BYTES_MAX - 20];
        let documents: [(&str, &[u8]); 3] =
            [("user-data", &large), ("meta-data", b"instance-id: i"), ("network-config", b"")];
        let mut image = seed(&documents).unwrap().image().unwrap();
        let disk = FileSystem::new(Cursor::new(&mut image[..]), FsOptions::new()).unwrap();
        assert_eq!(disk.volume_label(), "CIDATA");
        for (name, expected) in documents {
            let mut content = Vec::new();
            disk.root_dir().open_file(name).unwrap().read_to_end(&mut content).unwrap();
            assert_eq!(content, expected, "{name}");
        }
    }

    /// A guest may have the disk mounted while it moves to a host with another release of lighter.
    #[test]
    fn each_release_makes_the_same_disk_of_the_same_documents() {
        let image = seed(&[("user-data", b"#cloud-config\n"), ("meta-data", b"{}")]);
        assert_eq!(xxh3_64(&image.unwrap().image().unwrap()), 18_220_121_026_375_034_225);
    }

    #[test]
    fn impossible_documents_are_refused() {
        let refusal = |documents: &[(&str, &[u8])]| seed(documents).unwrap_err().to_string();
        let twice = refusal(&[("user-data", b"a"), ("user-data", b"b")]);
        assert_eq!(twice, "a seed has two documents user-data");
        for name in ["", "User", "a/b", "..", &"a".repeat(33)] {
            assert!(refusal(&[(name, b"")]).starts_with("a seed has no document"), "{name}");
        }
        let large = refusal(&[("user-data", &vec![0; SEED_BYTES_MAX + 1])]);
        assert_eq!(large, "a seed has at most 128 KiB of documents, not 131073 bytes");
    }

    #[test]
    fn what_documents_say_is_not_shown() {
        let shown = format!("{:?}", seed(&[("user-data", b"password: x")]).unwrap());
        assert_eq!(shown, r#"{"user-data": 11}"#);
    }
}
