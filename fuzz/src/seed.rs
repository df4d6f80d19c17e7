//! Documents of a seed disk, from a user or a peer.

use std::io::{Cursor, Read};

use arbitrary::Arbitrary;
use fatfs::{FileSystem, FsOptions};
use vmm_core::virtio::block::SeedConfig;

/// The documents: names and contents.
#[derive(Debug, Arbitrary)]
pub struct Documents(Vec<(Name, Content)>);

#[derive(Debug, Arbitrary)]
enum Name {
    /// One that a document can have: few letters, so that names are like each other.
    Plain(Vec<u8>),
    Any(String),
}

#[derive(Debug, Arbitrary)]
struct Content {
    bytes: Vec<u8>,
    /// How often they are repeated.
    times: u16,
}

impl Name {
    fn text(&self) -> String {
        match self {
            Self::Plain(bytes) => {
                let letters = bytes.iter().map(|byte| b"ab-"[usize::from(byte % 3)] as char);
                letters.take(40).collect()
            }
            Self::Any(text) => text.clone(),
        }
    }
}

/// Makes the disk, and reads it; returns how many documents it has.
///
/// # Panics
/// If documents that are accepted are not on the disk.
pub fn seed(documents: &Documents) -> u64 {
    let documents = documents.0.iter().map(|(name, content)| {
        (name.text(), content.bytes.repeat(usize::from(content.times) % 2000 + 1))
    });
    let documents: Vec<_> = documents.collect();
    let Ok(config) = SeedConfig::new(documents.clone()) else { return 0 };
    let mut disk = config.disk().unwrap_or_else(|error| panic!("no disk: {error}"));
    let system = FileSystem::new(Cursor::new(&mut disk[..]), FsOptions::new());
    let system = system.unwrap_or_else(|error| panic!("no file system: {error}"));
    for (name, expected) in &documents {
        let mut content = Vec::new();
        let read = system.root_dir().open_file(name).map(|mut file| file.read_to_end(&mut content));
        assert!(matches!(read, Ok(Ok(_))), "{name:?}: {read:?}");
        assert!(content == *expected, "{name:?}: {} bytes", content.len());
    }
    documents.len() as u64
}
