//! Which memory of a process the kernel may merge.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;

use super::sources::named;
use super::{ObserveError, Sources};

/// Longest file that is read: a mapping takes a kilobyte, and a process has 65,530 of them (`vm.max_map_count`).
const FILE_BYTES_MAX: u64 = 80 << 20;

/// The addresses at which process `pid` lets the kernel merge pages (`madvise(MADV_MERGEABLE)`; `mg` among the `VmFlags` of
/// `/proc/PID/smaps`), in order. The kernel walks all its page tables for it.
///
/// # Errors
/// [`ObserveError::Gone`] when it ends meanwhile, [`ObserveError::Forbidden`] for another user's process, [`ObserveError::Read`].
pub fn mergeable_areas(sources: &Sources, pid: u32) -> Result<Vec<Range<u64>>, ObserveError> {
    let path = sources.path(format!("proc/{pid}/smaps"));
    let failed = |error| named(&path, Some(pid), error);
    let file = File::open(&path).map_err(failed)?;
    let lines = BufReader::new(file.take(FILE_BYTES_MAX)).split(b'\n');
    let mut areas: Vec<Range<u64>> = Vec::new();
    let mut mapping = None;
    for line in lines {
        let line = line.map_err(failed)?;
        // The name of a mapped file may be anything; what counts here is ASCII.
        let line = String::from_utf8_lossy(&line);
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let is_mergeable = flags.split_ascii_whitespace().any(|flag| flag == "mg");
            areas.extend(mapping.take().filter(|_| is_mergeable));
        } else if let Some(range) = addresses(&line) {
            mapping = Some(range);
        }
    }
    Ok(areas)
}

/// Of a line that begins a mapping: `7f0c00000000-7f0c20000000 rw-p 00000000 00:00 0`.
fn addresses(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn areas(text: &str) -> Vec<Range<u64>> {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("proc/7")).expect("a folder");
        std::fs::write(folder.path().join("proc/7/smaps"), text).expect("a file");
        mergeable_areas(&Sources::at(folder.path()), 7).expect("areas")
    }

    #[test]
    fn what_is_marked_is_found() {
        let text = "\
7f0c00000000-7f0c08000000 rw-p 00000000 00:00 0 \n\
Size:             131072 kB\n\
VmFlags: rd wr mr mw me ac mg sd \n\
7f0c08000000-7f0c08200000 rw-p 00000000 00:00 0 \n\
Rss:                   4 kB\n\
VmFlags: rd wr mr mw me ac sd \n\
7f0c10000000-7f0c10001000 r--p 00000000 08:01 12                 /a VmFlags: mg\n\
VmFlags: rd mr mw me sd \n\
7fff00000000-7fff00002000 rw-p 00000000 00:00 0                  [stack]\n\
VmFlags: rd mg\n";
        let expected = [0x7f0c_0000_0000..0x7f0c_0800_0000, 0x7fff_0000_0000..0x7fff_0000_2000];
        assert_eq!(areas(text), expected);
    }

    #[test]
    fn text_that_no_kernel_writes_has_none() {
        for text in ["", "VmFlags: mg\n", "x-y rw\nVmFlags: mg\n", "2-1 rw\nVmFlags: mg\n", "1-2\n"]
        {
            assert_eq!(areas(text), [], "{text:?}");
        }
    }

    #[test]
    fn a_process_that_is_gone_is_said_to_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = mergeable_areas(&Sources::at(folder.path()), 7);
        assert!(matches!(refused, Err(ObserveError::Gone { pid: 7 })), "{refused:?}");
    }
}
