//! The freestanding `workload` guest. See `vmm-core/src/workload/` for what it does and how its
//! host speaks with it, and `load.rs` there for the state in which a vCPU enters.
//!
//! One thread per vCPU, each with its own part of the memory and its own report page; nothing is
//! shared, so nothing is locked. It uses no interrupts, no HLT, and no privileged instruction.

#![no_std]
#![no_main]

#[path = "../src/workload/abi.rs"]
#[expect(dead_code, reason = "the host uses the rest")]
mod abi;
mod libc_memory;
mod machine;
mod pace;
mod part;
mod report;
#[path = "../src/workload/stamp.rs"]
#[expect(dead_code, reason = "the host uses the rest")]
mod stamp;
mod work;

use abi::{ABI_VERSION, MAGIC, PARAMS_GPA, ParamsPage, VCPUS_MAX};

/// The first instruction of every vCPU.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
extern "C" fn _start(vcpu: u64, params_gpa: u64) -> ! {
    let params = ParamsPage::from_words(&machine::read_words(params_gpa));
    let known = params_gpa == PARAMS_GPA
        && params.magic == MAGIC
        && params.version == ABI_VERSION
        && params.vcpus <= VCPUS_MAX
        && vcpu < params.vcpus;
    if !known {
        machine::ring(vcpu, abi::BELL_PANIC);
        machine::spin();
    }
    work::run(vcpu, &params)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Which vCPU it was is not known here; the bell alone condemns the guest.
    machine::ring(0, abi::BELL_PANIC);
    machine::spin()
}
