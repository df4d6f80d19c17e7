//! Valid and hostile setup headers.

use proptest::prelude::*;

use super::*;

const LOW_END: u64 = 256 << 20;
const FILE_BYTES: u64 = 8 << 20;

/// A header like that of a current kernel.
fn sound() -> setup_header {
    setup_header {
        setup_sects: 30,
        boot_flag: BOOT_FLAG,
        jump: 0x6aeb,
        header: MAGIC,
        version: 0x20f,
        loadflags: LOADED_HIGH,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 2 << 20,
        relocatable_kernel: 1,
        xloadflags: 0x7f,
        cmdline_size: 2047,
        pref_address: 16 << 20,
        init_size: 48 << 20,
        ..Default::default()
    }
}

fn head(header: &setup_header) -> Vec<u8> {
    let mut head = vec![0; SETUP_HEADER];
    head.extend(header.as_slice());
    head
}

fn plan(header: &setup_header) -> Result<Plan, String> {
    Plan::new(&head(header), FILE_BYTES, LOW_END)
}

fn refusal(change: impl FnOnce(&mut setup_header)) -> String {
    let mut header = sound();
    change(&mut header);
    plan(&header).unwrap_err()
}

#[test]
fn a_relocatable_kernel_is_loaded_low_and_needs_room_where_it_will_run() {
    let plan = plan(&sound()).unwrap();
    assert_eq!((plan.load, plan.end), (1 << 20, 64 << 20));
    assert_eq!(plan.initrd_end_max, LOW_END);
    assert_eq!(plan.cmdline_bytes_max, 2047);
    assert_eq!(plan.setup.len(), 0x202 + 0x6a - 0x1f1);
}

#[test]
fn a_kernel_that_cannot_be_moved_is_loaded_where_it_wants_to_be() {
    let header = setup_header { relocatable_kernel: 0, ..sound() };
    assert_eq!(plan(&header).unwrap().load, 16 << 20);
}

#[test]
fn the_initrd_stays_below_what_the_kernel_can_reach() {
    let header = setup_header { initrd_addr_max: 0x37f_ffff, ..sound() };
    assert_eq!(plan(&header).unwrap().initrd_end_max, 0x380_0000);
    let header = setup_header { initrd_addr_max: u32::MAX, ..sound() };
    assert_eq!(plan(&header).unwrap().initrd_end_max, LOW_END);
}

#[test]
fn kernels_that_cannot_be_started_are_refused_with_the_reason() {
    let refusals = [
        (refusal(|header| header.boot_flag = 0), "no setup header"),
        (refusal(|header| header.header = 0), "no setup header"),
        (refusal(|header| header.version = 0x20b), "boot protocol 2.11, at least 2.12"),
        (refusal(|header| header.loadflags = 0), "a zImage"),
        (refusal(|header| header.xloadflags = 0), "a 32-bit kernel"),
        (refusal(|header| header.kernel_alignment = 3), "not a power of two"),
        (refusal(|header| header.kernel_alignment = 0), "not a power of two"),
        (refusal(|header| header.init_size = u32::MAX), "to have at least 4112 MiB"),
        (refusal(|header| header.pref_address = u64::MAX), "an impossible address"),
    ];
    for (reason, wanted) in refusals {
        assert!(reason.contains(wanted), "{reason}");
    }
    let low = refusal(|header| (header.relocatable_kernel, header.pref_address) = (0, 0x9000));
    assert_eq!(low, "it wants to be at 0x9000, which is not free");
}

#[test]
fn a_file_that_is_cut_off_is_refused() {
    let head = head(&sound());
    for bytes in [0, 31 * 512, 31 * 512 + 0x200] {
        let reason = Plan::new(&head, bytes, LOW_END).unwrap_err();
        assert_eq!(reason, "it ends before its kernel begins");
    }
    for cut in 0..head.len() {
        assert!(Plan::new(&head[..cut], FILE_BYTES, LOW_END).is_err());
    }
}

proptest! {
    #[test]
    fn whatever_a_header_says_the_kernel_stays_in_memory(
        bytes in proptest::collection::vec(any::<u8>(), size_of::<setup_header>()),
        keep in any::<u16>(),
        file_bytes in any::<u64>(),
    ) {
        // Random bytes alone would fail at the magic, so some fields get valid values.
        let mut header = *setup_header::from_slice(&bytes).unwrap();
        let good = sound();
        (header.header, header.boot_flag) = (good.header, good.boot_flag);
        let kept = |bit: u16| keep >> bit & 1 == 1;
        if kept(0) { header.version = good.version; }
        if kept(1) { header.xloadflags = good.xloadflags; header.loadflags = good.loadflags; }
        if kept(2) { header.kernel_alignment = good.kernel_alignment; }
        if kept(3) { header.init_size = good.init_size; }
        if kept(4) { header.pref_address = good.pref_address; }
        let file_bytes = if kept(5) { file_bytes % (64 << 20) } else { file_bytes };
        if let Ok(plan) = Plan::new(&head(&header), file_bytes, LOW_END) {
            prop_assert!(plan.load >= HIGH_MEMORY);
            prop_assert!(plan.load < plan.end && plan.end <= LOW_END);
            prop_assert!(plan.load + file_bytes.min(LOW_END) >= plan.load);
            prop_assert!(plan.initrd_end_max <= LOW_END);
            prop_assert!(plan.setup.len() <= size_of::<setup_header>());
        }
    }
}
