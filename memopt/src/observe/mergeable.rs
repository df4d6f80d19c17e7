//! Finds the processes, and the areas of their memory, in which the kernel may merge pages.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;

use super::process::{Merged, merged_of_thread};
use super::sources::{if_there, named};
use super::{ObserveError, Sources};

/// The most that is read of a file: a mapping takes one kilobyte, and a process has up to 65,530 of
/// them (`vm.max_map_count`).
const FILE_BYTES_MAX: u64 = 80 << 20;
/// The most processes that are named; more would change nothing.
const NAMED_MAX: usize = 8;

/// Returns the address ranges of process `pid` that the kernel may merge
/// (`madvise(MADV_MERGEABLE)`; `mg` in the `VmFlags` of `/proc/PID/smaps`), in order. The kernel
/// walks all page tables of the process for this.
///
/// # Errors
/// [`ObserveError::Gone`] if the process ends in the meantime, [`ObserveError::Forbidden`] for a
/// process of another user, [`ObserveError::Read`] if its file cannot be read.
pub fn mergeable_areas(sources: &Sources, pid: u32) -> Result<Vec<Range<u64>>, ObserveError> {
    Ok(areas(sources, pid, &format!("proc/{pid}"), usize::MAX)?.unwrap_or_default())
}

/// Returns up to 8 processes with mergeable memory, except those in `known`: the pid and
/// [`named_process`] of each. A process that cannot be inspected might have mergeable memory, so it
/// is included. Kernels before Linux 6.15 do not report this per process: there, the page tables of
/// every process without mergeable memory are walked. `now_at` is called with each process before
/// it is inspected, because the inspection blocks for as long as that process holds its memory map
/// lock.
///
/// # Errors
/// If the list of processes cannot be read.
pub fn mergeable_processes(
    sources: &Sources,
    known: &[u32],
    now_at: impl Fn(u32),
) -> Result<Vec<(u32, String)>, ObserveError> {
    let others = sources.processes()?.into_iter().filter(|pid| !known.contains(pid));
    let inspected = others.filter_map(|pid| {
        now_at(pid);
        let named = || named_process(sources, pid);
        match lets_merge(sources, pid) {
            Ok(true) => Some((pid, named())),
            Ok(false) => None,
            Err(_) if !sources.path(format!("proc/{pid}")).exists() => None,
            Err(_) => Some((pid, format!("{}, whose memory cannot be inspected,", named()))),
        }
    });
    Ok(inspected.take(NAMED_MAX).collect())
}

/// Formats a process as `process 7 (program)`.
#[must_use]
pub fn named_process(sources: &Sources, pid: u32) -> String {
    // A process may choose any name, including control characters.
    let name = sources.read_lossy_of(pid, "comm").unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    format!("process {pid} ({name})")
}

fn lets_merge(sources: &Sources, pid: u32) -> Result<bool, ObserveError> {
    let of_process = format!("proc/{pid}");
    if let Some(answer) = thread_lets_merge(sources, pid, &of_process)? {
        return Ok(answer);
    }
    // The first thread may have ended before the others, which still have the memory.
    for thread in if_there(sources.entries(&format!("{of_process}/task")))?.unwrap_or_default() {
        let folder = format!("{of_process}/task/{thread}");
        if let Some(answer) = thread_lets_merge(sources, pid, &folder)? {
            return Ok(answer);
        }
    }
    Ok(false)
}

/// Returns whether the thread's memory has mergeable areas; `None` if it has no memory or has
/// ended.
fn thread_lets_merge(
    sources: &Sources,
    pid: u32,
    folder: &str,
) -> Result<Option<bool>, ObserveError> {
    if let Some(Merged { is_mergeable: Some(is_mergeable), .. }) =
        merged_of_thread(sources, folder)?
    {
        return Ok(Some(is_mergeable));
    }
    match areas(sources, pid, folder, 1) {
        Err(ObserveError::Gone { .. }) => Ok(None),
        areas => Ok(areas?.map(|areas| !areas.is_empty())),
    }
}

/// Returns the first `count` mergeable areas of the thread of process `pid` whose folder is
/// `folder`; `None` if it has no memory.
fn areas(
    sources: &Sources,
    pid: u32,
    folder: &str,
    count: usize,
) -> Result<Option<Vec<Range<u64>>>, ObserveError> {
    let path = sources.path(format!("{folder}/smaps"));
    let failed = |error| named(&path, Some(pid), error);
    let file = File::open(&path).map_err(failed)?;
    let lines = BufReader::new(file.take(FILE_BYTES_MAX)).split(b'\n');
    let mut areas: Option<Vec<Range<u64>>> = None;
    let mut mapping = None;
    for line in lines {
        let line = line.map_err(failed)?;
        let areas = areas.get_or_insert_default();
        // A mapped file's name may be any bytes; the parts that matter here are ASCII.
        let line = String::from_utf8_lossy(&line);
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let is_mergeable = flags.split_ascii_whitespace().any(|flag| flag == "mg");
            areas.extend(mapping.take().filter(|_| is_mergeable));
        } else if let Some(range) = addresses(&line) {
            mapping = Some(range);
        }
        if areas.len() == count {
            break;
        }
    }
    Ok(areas)
}

/// Parses the first line of a mapping: `7f0c00000000-7f0c20000000 rw-p 00000000 00:00 0`.
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
    fn marked_mappings_are_found() {
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
    fn invalid_text_has_no_marked_mappings() {
        for text in ["", "VmFlags: mg\n", "x-y rw\nVmFlags: mg\n", "2-1 rw\nVmFlags: mg\n", "1-2\n"]
        {
            assert_eq!(areas(text), [], "{text:?}");
        }
    }

    #[test]
    fn processes_with_mergeable_pages_are_named_on_any_kernel() {
        let folder = tempfile::tempdir().expect("a folder");
        let process = |pid: u32, name: &str, files: &[(&str, &str)]| {
            let path = folder.path().join(format!("proc/{pid}"));
            std::fs::create_dir_all(path.join("task")).expect("a folder");
            std::fs::write(path.join("comm"), format!("{name}\n")).expect("a file");
            files.iter().for_each(|(file, text)| {
                std::fs::write(path.join(file), text).expect("a file");
            });
        };
        let marked = "1-2 rw-p 0 0:0 0\nVmFlags: rd mg\n";
        let stat = |answer: &str| format!("ksm_rmap_items 0\nksm_mergeable: {answer}\n");
        process(5, "new", &[("ksm_stat", &stat("yes")), ("smaps", "")]);
        process(6, "calm", &[("ksm_stat", &stat("no")), ("smaps", marked)]);
        process(7, "old\u{1b}[2J", &[("ksm_stat", "ksm_rmap_items 0\n"), ("smaps", marked)]);
        process(8, "oldest", &[("smaps", "1-2 rw-p 0 0:0 0\nVmFlags: rd\n")]);
        process(9, "guest", &[("ksm_stat", &stat("yes"))]);
        process(2, "kthreadd", &[("ksm_stat", ""), ("smaps", "")]);
        process(10, "odd", &[("ksm_stat", "nonsense")]);
        // Two processes whose first thread has ended, on a current kernel and on an old one.
        process(11, "headless", &[("ksm_stat", ""), ("smaps", "")]);
        process(12, "headless", &[("smaps", "")]);
        for (thread, file, text) in [
            ("11/task/11", "ksm_stat", ""),
            ("11/task/13", "ksm_stat", &stat("yes")),
            ("12/task/14", "smaps", marked),
        ] {
            let path = folder.path().join("proc").join(thread);
            std::fs::create_dir_all(&path).expect("a folder");
            std::fs::write(path.join("smaps"), "").expect("a file");
            std::fs::write(path.join(file), text).expect("a file");
        }
        let sources = Sources::at(folder.path());
        let inspected = std::cell::RefCell::new(Vec::new());
        let now_at = |pid| inspected.borrow_mut().push(pid);
        let seen = mergeable_processes(&sources, &[9], now_at).expect("processes");
        assert_eq!(*inspected.borrow(), [2, 5, 6, 7, 8, 10, 11, 12]);
        let seen: Vec<(u32, &str)> = seen.iter().map(|(pid, name)| (*pid, name.as_str())).collect();
        let expected = [
            (5, "process 5 (new)"),
            (7, "process 7 (old[2J)"),
            (10, "process 10 (odd), whose memory cannot be inspected,"),
            (11, "process 11 (headless)"),
            (12, "process 12 (headless)"),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_ended_process_is_reported_as_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = mergeable_areas(&Sources::at(folder.path()), 7);
        assert!(matches!(refused, Err(ObserveError::Gone { pid: 7 })), "{refused:?}");
    }
}
