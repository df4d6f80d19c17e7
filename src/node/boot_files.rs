//! Whether this host has the files from which a guest boots. A host asks before it sends the guest,
//! and already knows what is in them.

use migrate::protocol::front::{BootFile, FrontReply};
use migrate::{Refusal, guest::RefusalKind};
use tokio::sync::Semaphore;
use vmm_core::boot::FileRecord;

/// Most files of one guest: a kernel and an initrd.
const FILES_MAX: usize = 2;
/// Largest file that is read, in bytes.
const BYTES_MAX: u64 = 1 << 30;

/// Answers under way: they read files, and go on when the host that asked is gone.
static ANSWERING: Semaphore = Semaphore::const_new(2);

/// Answers which of `files` are here. A file with other content counts as one that is not, so that
/// the answer does not reveal which files there are.
pub(crate) fn answer(files: Vec<BootFile>) -> FrontReply {
    let Ok(_answering) = ANSWERING.try_acquire() else {
        let text = "other hosts ask for files to boot from; ask again later";
        return FrontReply::Refused(Refusal::new(RefusalKind::Busy, text));
    };
    let is_here = |BootFile { path, digest }| FileRecord { path, digest }.is_here(BYTES_MAX);
    // Blocking: it reads the files.
    let are_here = || files.into_iter().take(FILES_MAX).map(is_here).collect();
    FrontReply::BootFiles(tokio::task::block_in_place(are_here))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn only_files_with_that_content_are_here_and_few_are_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let known = |path: &str, digest| BootFile { path: path.as_bytes().to_vec(), digest };
        let path = file.path().to_str().unwrap();
        // XXH3 of nothing, 128 bits.
        let empty = 0x99aa_06d3_0147_98d8_6001_c324_468d_497f;
        let answers = answer(vec![known(path, empty), known(path, 7), known(path, empty)]);
        assert_eq!(answers, FrontReply::BootFiles(vec![true, false]));
        let strange = answer(vec![known("/nowhere", empty), known("/dev/null", empty)]);
        assert_eq!(strange, FrontReply::BootFiles(vec![false, false]));

        let _all = ANSWERING.try_acquire_many(2).unwrap();
        assert!(matches!(answer(vec![known(path, empty)]), FrontReply::Refused(_)));
    }
}
