//! Guests for tests: a few machine instructions each, run at CPL 3, which is fast on every host.

use std::io::sink;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use crate::boot::{UserEntry, start_user_mode};
use crate::snapshot::{self, SavedDisks};
use crate::{DirtyLog, Vm, VmEvent, VmOptions, VmShape};

/// Far longer than any event takes; only a failing test reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Load address of test programs.
pub(crate) const CODE: u64 = 0x10_0000;
/// First page that test programs write, at 2 MiB.
pub(crate) const DATA: u64 = 0x20_0000;

/// Adds 1 to the first word of RSI pages from RDI on, rings the doorbell with 1, and repeats.
pub(crate) const TOUCH_PAGES: &[u8] = &[
    0x48, 0x89, 0xf8, // mov rax, rdi
    0x48, 0x89, 0xf1, // mov rcx, rsi
    0x48, 0xff, 0x00, // page: inc qword [rax]
    0x48, 0x05, 0x00, 0x10, 0x00, 0x00, // add rax, 4096
    0x48, 0xff, 0xc9, // dec rcx
    0x75, 0xf2, // jnz page
    0x66, 0xba, 0xc0, 0x04, // mov dx, DOORBELL_PORT
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
    0xef, // out dx, eax
    0xeb, 0xe0, // jmp start
];

/// As `TOUCH_PAGES`, but once: rings the doorbell with 1 and spins.
pub(crate) fn touch_pages_once() -> Vec<u8> {
    let mut code = TOUCH_PAGES.to_vec();
    let jump = code.len() - 1;
    code[jump] = 0xfe;
    code
}

/// Rings the doorbell with RDI, RDI + 1, ... for ever.
pub(crate) const COUNT_ALOUD: &[u8] = &[
    0x66, 0xba, 0xc0, 0x04, // mov dx, DOORBELL_PORT
    0x89, 0xf8, // mov eax, edi
    0xef, // ring: out dx, eax
    0xff, 0xc0, // inc eax
    0xeb, 0xfb, // jmp ring
];

/// Adds 1 to the word at RDI for ever, and to XMM0, whose value it stores after that word.
pub(crate) const COUNT_IN_MEMORY: &[u8] = &[
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
    0x66, 0x48, 0x0f, 0x6e, 0xc8, // movq xmm1, rax
    0x66, 0x0f, 0xef, 0xc0, // pxor xmm0, xmm0
    0x66, 0x0f, 0xd4, 0xc1, // turn: paddq xmm0, xmm1
    0x66, 0x0f, 0xd6, 0x47, 0x08, // movq [rdi + 8], xmm0
    0x48, 0xff, 0x07, // inc qword [rdi]
    0xeb, 0xf2, // jmp turn
];

/// Writes the low byte of RSI to the port in RDI and spins.
pub(crate) const WRITE_PORT: &[u8] = &[
    0x89, 0xfa, // mov edx, edi
    0x89, 0xf0, // mov eax, esi
    0xee, // out dx, al
    0xeb, 0xfe, // jmp $
];

/// An instruction that always faults; without an interrupt table, that ends the guest.
pub(crate) const FAULT: &[u8] = &[0x0f, 0x0b]; // ud2

/// The host's shape, queried once, with another size.
pub(crate) fn shape(mib: u64, vcpus: u8) -> VmShape {
    static HOST: OnceLock<VmShape> = OnceLock::new();
    let host = HOST.get_or_init(|| VmShape::for_host(64 << 20, 1).unwrap());
    VmShape { memory_bytes: mib << 20, vcpus, ..host.clone() }
}

/// A paused, empty VM.
pub(crate) fn empty_vm(mib: u64, vcpus: u8) -> Vm {
    Vm::create(&shape(mib, vcpus), Box::new(sink())).unwrap()
}

/// A paused VM in which each vCPU will run `code` with its own arguments.
pub(crate) fn vm_with(mib: u64, code: &[u8], args: &[[u64; 2]]) -> Vm {
    vm_by(DirtyLog::Auto, mib, code, args)
}

/// As `vm_with`, with this dirty log.
pub(crate) fn vm_by(dirty_log: DirtyLog, mib: u64, code: &[u8], args: &[[u64; 2]]) -> Vm {
    vm_of(&shape(mib, args.len() as u8), dirty_log, code, args)
}

/// As `vm_by`, with this shape.
pub(crate) fn vm_of(shape: &VmShape, dirty_log: DirtyLog, code: &[u8], args: &[[u64; 2]]) -> Vm {
    let options = VmOptions { dirty_log, ..VmOptions::default() };
    let vm = Vm::create_with(shape, &options, Box::new(sink())).unwrap();
    vm.ram().write(CODE, code).unwrap();
    let entries: Vec<UserEntry> =
        args.iter().map(|args| UserEntry { rip: CODE, rsp: 0, args: *args }).collect();
    start_user_mode(&vm, &entries).unwrap();
    vm
}

/// Returns the next event, and fails if none comes.
pub(crate) fn event(vm: &Vm) -> VmEvent {
    vm.events().take(PATIENCE).expect("an event")
}

/// Reads the word at `gpa`.
pub(crate) fn word(vm: &Vm, gpa: u64) -> u64 {
    let mut bytes = [0; 8];
    vm.ram().read(gpa, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// Waits until the word at `gpa` is larger than `than`.
pub(crate) fn wait_for_more(vm: &Vm, gpa: u64, than: u64) -> u64 {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let now = word(vm, gpa);
        if now > than {
            return now;
        }
        assert!(std::time::Instant::now() < deadline, "the guest stands still at {now}");
        std::thread::yield_now();
    }
}

/// Copies all memory from one VM to another.
pub(crate) fn copy_memory(from: &Vm, to: &Vm) {
    let mut chunk = vec![0; crate::memory::CHUNK_BYTES];
    for index in 0..from.ram().chunks() {
        from.ram().copy_out(index, 0, &mut chunk).unwrap();
        to.ram().copy_in(index, 0, &chunk).unwrap();
    }
}

/// Restores a guest from the file at `path`, as one that was saved there.
pub(crate) fn restore_from(path: &Path) -> crate::Result<Vm> {
    snapshot::restore(path, SavedDisks::Unwritten, &VmOptions::default(), Box::new(sink()))
}

/// A file with this content.
pub(crate) fn file_with(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    file
}

/// A minimal ELF: one segment of `code` at `gpa`, which is also the entry.
pub(crate) fn elf(gpa: u64, code: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [gpa, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for half in [0u16, 0, 64, 56, 1, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [120, gpa, gpa, code.len() as u64, code.len() as u64, 4096] {
        bytes.extend(u64::to_le_bytes(word));
    }
    bytes.extend(code);
    bytes
}

/// An ELF with `code` at `gpa`, and a note that says that this is its PVH entry.
pub(crate) fn with_pvh_entry(gpa: u64, code: &[u8]) -> Vec<u8> {
    const SECOND_HEADER: usize = 64 + 56;
    const HEADER_COUNT: usize = 56;
    const PHYS32_ENTRY: u32 = 18;
    let mut bytes = elf(gpa, code);
    bytes[HEADER_COUNT] = 2;
    // The code is behind both program headers now.
    bytes[64 + 8] = (SECOND_HEADER + 56) as u8;
    let note: Vec<u8> = [4, 8, PHYS32_ENTRY].into_iter().flat_map(u32::to_le_bytes).collect();
    let note = [&note[..], b"Xen\0", &gpa.to_le_bytes()].concat();
    let mut header = [4, 4].into_iter().flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let offset = (bytes.len() + 56) as u64;
    for word in [offset, 0, 0, note.len() as u64, note.len() as u64, 4] {
        header.extend(u64::to_le_bytes(word));
    }
    bytes.splice(SECOND_HEADER..SECOND_HEADER, header);
    bytes.extend(note);
    bytes
}

/// The host's pool of 2 MiB pages with a chosen number of free ones; dropping this restores its
/// size. The pool belongs to the host, so tests that use it take turns, also across processes.
pub(crate) struct Pool {
    before: u64,
    _turn: std::fs::File,
}

const POOL_2M: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

fn pool_count(file: &str) -> u64 {
    let text = std::fs::read_to_string(format!("{POOL_2M}/{file}")).expect("a kernel with hugetlb");
    text.trim().parse().unwrap()
}

fn set_pool(pages: u64) {
    std::fs::write(format!("{POOL_2M}/nr_hugepages"), pages.to_string())
        .expect("this test needs a pool of huge pages, and root to make one");
}

/// Sets up a pool with exactly `count` free pages.
pub(crate) fn pool_of_2m(count: u64) -> Pool {
    let turn =
        std::fs::File::create(std::env::temp_dir().join("lighter-tests-hugetlb.lock")).unwrap();
    turn.lock().unwrap();
    let before = pool_count("nr_hugepages");
    let used = before - pool_count("free_hugepages") + pool_count("resv_hugepages");
    set_pool(used + count);
    assert_eq!(pool_count("nr_hugepages"), used + count, "this host has no memory for huge pages");
    Pool { before, _turn: turn }
}

impl Drop for Pool {
    fn drop(&mut self) {
        set_pool(self.before);
    }
}
