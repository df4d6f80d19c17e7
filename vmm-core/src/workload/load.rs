//! Loads the workload guest into RAM.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::abi::{
    ABI_VERSION, CONTROL_GPA, ControlPage, IMAGE_GPA, LEDGER_GPA, MAGIC, PAGE_BYTES, PARAMS_GPA,
    ParamsPage, STACK_BYTES, STACKS_GPA, VCPUS_MAX,
};
use super::memory::{write_bytes, write_words};
use super::params::check;
use super::stamp::Shuffle;
use super::{WorkloadError, WorkloadParams};

/// The program, a flat binary for [`IMAGE_GPA`] that this crate's build script builds.
static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/workload.bin"));

/// Registers with which a vCPU starts the workload.
///
/// From the first instruction on, the vCPU also needs: 64-bit mode at CPL 3 with flat segments; all
/// of RAM mapped one to one, user-accessible and writable, with page tables below [`IMAGE_GPA`];
/// RFLAGS with IOPL 3 and interrupts off; CR4.OSFXSR set and CR0.EM and CR0.TS clear (it uses
/// SSE2); CR4.TSD clear (it uses RDTSC). It takes no interrupts and no exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuEntry {
    /// Address of the first instruction.
    pub rip: u64,
    /// Stack pointer, as after a call.
    pub rsp: u64,
    /// First argument: index of the vCPU.
    pub rdi: u64,
    /// Second argument: address of the parameter page.
    pub rsi: u64,
}

/// Writes image, parameters and control values into `ram`, and returns each vCPU's entry registers.
///
/// `ram` must be all zero, like newly mapped memory. `tsc_hz` is the frequency of the guest's TSC
/// in ticks per second. Memory below [`IMAGE_GPA`] is left to the VMM.
///
/// # Errors
/// [`WorkloadError::Parameter`] and [`WorkloadError::MemoryTooSmall`] say what would be accepted;
/// [`WorkloadError::Memory`] if `ram` has a hole below the working memory.
pub fn load(
    ram: &impl GuestMemoryBackend,
    vcpus: u8,
    tsc_hz: u64,
    params: &WorkloadParams,
) -> Result<Vec<VcpuEntry>, WorkloadError> {
    params.validate()?;
    check("vcpus", vcpus.into(), 1..=VCPUS_MAX, "1 to 8")?;
    check("tsc_hz", tsc_hz, 1_000_000..=u64::from(u32::MAX) * 4, "1 MHz to 17 GHz")?;
    let working = WorkingMemory::plan(ram, params.memory_bytes)?;
    write_bytes(ram, IMAGE_GPA, IMAGE)?;
    write_words(ram, PARAMS_GPA, &params_page(params, vcpus, tsc_hz, &working).to_words())?;
    write_words(ram, CONTROL_GPA, &control_page(params, working.pages).to_words())?;
    Ok((0..u64::from(vcpus)).map(entry).collect())
}

fn entry(vcpu: u64) -> VcpuEntry {
    let stack_top = STACKS_GPA + (vcpu + 1) * STACK_BYTES;
    VcpuEntry { rip: IMAGE_GPA, rsp: stack_top - 8, rdi: vcpu, rsi: PARAMS_GPA }
}

fn params_page(
    params: &WorkloadParams,
    vcpus: u8,
    tsc_hz: u64,
    working: &WorkingMemory,
) -> ParamsPage {
    let (random_percent, text_percent) = params.pattern.shares();
    let shuffle = Shuffle::new(params.piece_pages, working.pages, params.own_seed);
    ParamsPage {
        magic: MAGIC,
        version: ABI_VERSION,
        vcpus: vcpus.into(),
        tsc_hz,
        seed: params.seed,
        own_seed: params.own_seed,
        pages: working.pages,
        low_gpa: working.low_gpa,
        low_pages: working.low_pages,
        high_gpa: working.high_gpa,
        random_percent,
        text_percent,
        image_percent: params.image_percent.into(),
        run_pages: params.run_pages,
        zeroing_percent: params.zeroing_percent.into(),
        sweep_rate: params.sweep_pages_per_second,
        read_rate: params.read_pages_per_second,
        piece_pages: shuffle.piece_pages,
        pieces: shuffle.pieces,
        stride: shuffle.stride,
    }
}

fn control_page(params: &WorkloadParams, pages: u64) -> ControlPage {
    ControlPage {
        dirty_rate: params.dirty_rate_pages_per_second,
        working_set_pages: (params.working_set_bytes / PAGE_BYTES).min(pages),
        order: params.order as u64,
        ..ControlPage::default()
    }
}

/// Location of the pages that the guest fills.
#[derive(Debug, PartialEq, Eq)]
struct WorkingMemory {
    pages: u64,
    low_gpa: u64,
    low_pages: u64,
    high_gpa: u64,
}

impl WorkingMemory {
    /// Plans `wanted_bytes`, or all available memory, in the region at 0 and then in the next one.
    fn plan(
        ram: &impl GuestMemoryBackend,
        wanted_bytes: Option<u64>,
    ) -> Result<Self, WorkloadError> {
        let low_end = ram.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len);
        let high = ram.iter().find(|region| region.start_addr().0 > 0);
        let high_gpa = high.map_or(0, |region| region.start_addr().0);
        let high_pages = high.map_or(0, GuestMemoryRegion::len) / PAGE_BYTES;

        let for_low = low_end.saturating_sub(LEDGER_GPA) / PAGE_BYTES;
        let ledger_pages = |pages: u64| (pages * 4).div_ceil(PAGE_BYTES);
        let pages = match wanted_bytes {
            Some(bytes) => bytes / PAGE_BYTES,
            // 1025 pages hold 1024 pages of working memory and their ledger.
            None => (for_low + high_pages) * 1024 / 1025,
        };
        let low_room = for_low.saturating_sub(ledger_pages(pages));
        if pages == 0 || pages > low_room + high_pages {
            let wanted_bytes = wanted_bytes.unwrap_or(PAGE_BYTES);
            let pages = wanted_bytes.div_ceil(PAGE_BYTES).max(1);
            let least_bytes =
                LEDGER_GPA.saturating_add((ledger_pages(pages) + pages).saturating_mul(PAGE_BYTES));
            return Err(WorkloadError::MemoryTooSmall {
                wanted_bytes,
                available_bytes: (for_low + high_pages) * 1024 / 1025 * PAGE_BYTES,
                enough_mib: least_bytes.div_ceil(1 << 20),
            });
        }
        let low_gpa = LEDGER_GPA + ledger_pages(pages) * PAGE_BYTES;
        Ok(Self { pages, low_gpa, low_pages: pages.min(low_room), high_gpa })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    fn ram(regions: &[(u64, usize)]) -> GuestMemoryMmap {
        let regions: Vec<_> = regions.iter().map(|(gpa, len)| (GuestAddress(*gpa), *len)).collect();
        GuestMemoryMmap::from_ranges(&regions).unwrap()
    }

    #[test]
    fn image_ends_before_the_parameter_page() {
        assert!(!IMAGE.is_empty());
        assert!((IMAGE.len() as u64) < PARAMS_GPA - IMAGE_GPA);
    }

    #[test]
    fn takes_all_memory_of_one_region() {
        let working = WorkingMemory::plan(&ram(&[(0, 64 << 20)]), None).unwrap();
        assert_eq!(working.pages, 15_345);
        assert_eq!(working.low_pages, working.pages);
        assert!(working.low_gpa + working.pages * PAGE_BYTES <= 64 << 20);
    }

    #[test]
    fn continues_in_the_region_above_the_hole() {
        let high_gpa = 1 << 32;
        let ram = ram(&[(0, 16 << 20), (high_gpa, 16 << 20)]);
        let working = WorkingMemory::plan(&ram, None).unwrap();
        assert_eq!(working.high_gpa, high_gpa);
        assert_eq!(working.low_gpa + working.low_pages * PAGE_BYTES, 16 << 20);
        assert!(working.pages - working.low_pages <= (16 << 20) / PAGE_BYTES);
    }

    #[test]
    fn refuses_more_memory_than_the_guest_has() {
        let refused = WorkingMemory::plan(&ram(&[(0, 16 << 20)]), Some(16 << 20)).unwrap_err();
        assert!(refused.to_string().contains("room for 12570624 bytes"), "{refused}");
    }

    #[test]
    fn reports_how_much_memory_is_enough() {
        for wanted_bytes in [None, Some(PAGE_BYTES), Some(8 << 20)] {
            let refused = WorkingMemory::plan(&ram(&[(0, 4 << 20)]), wanted_bytes);
            let Err(WorkloadError::MemoryTooSmall { enough_mib, .. }) = refused else {
                panic!("{refused:?}");
            };
            let plan = |mib| WorkingMemory::plan(&ram(&[(0, (mib as usize) << 20)]), wanted_bytes);
            assert!(plan(enough_mib).is_ok() && plan(enough_mib - 1).is_err(), "{wanted_bytes:?}");
        }
    }

    #[test]
    fn refuses_nine_vcpus() {
        let ram = ram(&[(0, 16 << 20)]);
        let refused = load(&ram, 9, 1_000_000_000, &WorkloadParams::default()).unwrap_err();
        assert_eq!(refused.to_string(), "workload parameter vcpus is 9: 1 to 8");
    }

    #[test]
    fn each_vcpu_has_its_own_stack() {
        let ram = ram(&[(0, 16 << 20)]);
        let entries = load(&ram, 2, 1_000_000_000, &WorkloadParams::default()).unwrap();
        assert_eq!(entries[0].rsp + STACK_BYTES, entries[1].rsp);
        assert_eq!((entries[0].rdi, entries[1].rdi), (0, 1));
        assert_eq!(entries[0].rsp % 16, 8, "as after a call");
    }
}
