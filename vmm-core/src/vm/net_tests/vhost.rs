//! Network devices whose frames the host's kernel carries. Needs `/dev/vhost-net`.

use std::sync::mpsc;

use super::*;
use crate::vm::device_tests::read;

/// The status bit that asks the driver for a reset.
const NEEDS_RESET: u32 = 0x40;
const MACS: [&str; 2] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];

/// A paused guest on the bridge whose frames the device's own thread carries.
fn vm_without_vhost(mac: &str) -> Vm {
    vm_with(&shape_on(on_bridge(), mac), VmOptions::default())
}

fn by_kernel(vm: &Vm) -> bool {
    vm.nets()[0].vhost
}

fn status(vm: &Vm) -> u32 {
    read(vm, 0, register::STATUS)
}

/// The interrupts that the driver has not acknowledged.
fn interrupts(vm: &Vm) -> u32 {
    read(vm, 0, register::INTERRUPT_STATUS)
}

/// Has `from` broadcast `words`, and waits until they are the last frame that `to` has received.
#[track_caller]
fn passes(from: &Vm, to: &Vm, words: &str) {
    let known = received(to).len();
    broadcast(from, words);
    wait_for_frame(to, known, words, |frame| frame.ends_with(words.as_bytes()));
}

#[test]
fn the_kernel_carries_frames_and_interrupts_while_the_guest_runs() {
    on_a_bridge(|| {
        let [first, second] = MACS.map(receiving_vm);
        eventually("the kernel takes over", || by_kernel(&first) && by_kernel(&second));
        passes(&first, &second, "hello");
        eventually("the driver is interrupted", || interrupts(&second) & 1 == 1);
        first.pause().unwrap();
        assert!(!by_kernel(&first), "a paused guest is left alone");
        first.resume().unwrap();
        eventually("the kernel takes over again", || by_kernel(&first));
        passes(&second, &first, "and back");
        let [sent, heard] = [&first, &second].map(|vm| vm.nets().remove(0));
        assert_eq!((sent.transmitted.frames, heard.received.frames), (1, 1));
        assert_eq!((sent.transmitted.bytes, heard.received.bytes), (19, 19));
    });
}

/// Sends these bytes as a frame with its header, by the driver's next free descriptor.
fn send_raw(vm: &Vm, bytes: &[u8]) {
    vm.ram().write(FRAME, bytes).unwrap();
    Driver::new(vm.ram().memory(), 1).offer(&[(FRAME, bytes.len() as u32, 0)]);
    drive(vm, 0, &[(register::QUEUE_NOTIFY, 1)]);
}

/// The kernel must neither leak memory for them nor try them for ever.
#[test]
fn frames_that_are_too_short_are_dropped_and_others_follow() {
    on_a_bridge(|| {
        let [first, second] = MACS.map(receiving_vm);
        passes(&first, &second, "before");
        let mut impossible_header = [0; 60];
        impossible_header[..4].copy_from_slice(&[0, 1, 0xff, 0xff]); // gso type and header length
        for bytes in [&[0; 5][..], &[0; 12], &[0; 20], &impossible_header] {
            let used = || Driver::new(first.ram().memory(), 1).used().len();
            let before = used();
            send_raw(&first, bytes);
            eventually("it is used", || used() == before + 1);
        }
        passes(&first, &second, "afterwards");
        assert_eq!(received(&second).len(), 2);
        assert!(by_kernel(&first));
    });
}

/// A signal that the device's thread has not seen when the guest is paused must be in its state.
#[test]
fn no_interrupt_is_lost_at_a_pause() {
    on_a_bridge(|| {
        let [first, second] = MACS.map(receiving_vm);
        passes(&first, &second, "before");
        eventually("the driver is interrupted", || interrupts(&second) & 1 == 1);
        drive(&second, 0, &[(register::INTERRUPT_ACK, 3)]);
        let (busy, is_busy) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let bus = &second.machine.bus;
            // It takes the pause right after this job, and no signal in between.
            scope.spawn(|| {
                bus.occupy(0, move || {
                    busy.send(()).unwrap();
                    let _ = released.recv();
                });
            });
            is_busy.recv().unwrap();
            passes(&first, &second, "while the thread is busy");
            assert_eq!(interrupts(&second) & 1, 0);
            scope.spawn(|| second.pause().unwrap());
            // Too short a time hides a mistake, and makes none.
            std::thread::sleep(Duration::from_millis(300));
            drop(release);
        });
        assert_eq!(interrupts(&second) & 1, 1);
    });
}

#[test]
fn what_the_kernel_writes_is_in_the_dirty_log() {
    on_a_bridge(|| {
        let [first, second] = MACS.map(receiving_vm);
        passes(&first, &second, "before");
        second.start_dirty_log().unwrap();
        let mut words = vec![0; second.ram().chunks()];
        let mut written = |vm: &Vm| {
            words.fill(0);
            vm.collect_dirty(&mut words).unwrap();
            vm.rearm_dirty(0, &words).unwrap();
            let is_written = |page: &u64| words[(page / 64) as usize] >> (page % 64) & 1 == 1;
            // The program spins without a write, but KVM may count its page all the same.
            let pages = (0..vm.ram().bytes() >> 12).filter(is_written);
            pages.filter(|page| *page != CODE >> 12).collect::<Vec<_>>()
        };
        assert_eq!(written(&second).len() as u64, (second.ram().bytes() >> 12) - 1);
        assert_eq!(written(&second), [0; 0]);
        let used = Driver::new(second.ram().memory(), 0).registers().used >> 12;
        for turn in 1..=2 {
            passes(&first, &second, "while it is logged");
            let buffer = (BUFFERS + turn * BUFFER_BYTES) >> 12;
            // The kernel logs a frame just after its driver can see it.
            second.pause().unwrap();
            let pages = written(&second);
            let (rings, buffers): (Vec<u64>, Vec<u64>) =
                pages.into_iter().partition(|page| *page < BUFFERS >> 12);
            assert_eq!(buffers, [buffer]);
            assert!(rings.contains(&used), "{rings:x?}");
            second.resume().unwrap();
            eventually("the kernel takes over again", || by_kernel(&second));
        }
        second.stop_dirty_log().unwrap();
        passes(&first, &second, "afterwards");
        second.start_dirty_log().unwrap();
        written(&second);
        assert_eq!(written(&second), [0; 0], "a log begins empty");
    });
}

#[test]
fn a_guest_moves_between_hosts_with_and_without_it() {
    on_a_bridge(|| {
        let mut guest = receiving_vm(MACS[1]);
        for turn in 0..4 {
            // One for all turns would run out of buffers: each arrival is announced five times.
            let neighbour = receiving_vm(MACS[0]);
            passes(&neighbour, &guest, &format!("before turn {turn}"));
            let has_vhost = turn % 2 == 1;
            guest.pause().unwrap();
            let state = guest.save_state().unwrap();
            let next = if has_vhost { vm(MACS[1]) } else { vm_without_vhost(MACS[1]) };
            copy_memory(&guest, &next);
            next.load_state(&VmState::from_bytes(&state.to_bytes().unwrap()).unwrap()).unwrap();
            guest.release().unwrap();
            next.resume().unwrap();
            eventually("it is carried as it should be", || by_kernel(&next) == has_vhost);
            passes(&neighbour, &next, &format!("turn {turn}"));
            passes(&next, &neighbour, &format!("and back {turn}"));
            guest = next;
        }
    });
}

#[test]
fn a_driver_that_breaks_the_rules_has_to_reset_its_device() {
    on_a_bridge(|| {
        let [first, second] = MACS.map(receiving_vm);
        eventually("the kernel takes over", || by_kernel(&second));
        let ways: [fn(&Driver<'_>); 3] = [
            |driver| {
                driver.offer(&[(1 << 40, 100, 0)]);
            },
            |driver| driver.make_available(SIZE),
            |driver| driver.set_available_index(999),
        ];
        for break_rules in ways {
            break_rules(&Driver::new(second.ram().memory(), 1));
            drive(&second, 0, &[(register::QUEUE_NOTIFY, 1)]);
            eventually("it asks for a reset", || status(&second) & NEEDS_RESET != 0);
            assert!(!by_kernel(&second), "its queues are left alone");
            broadcast(&first, "into the void");
            // It can still be paused, saved and resumed.
            second.pause().unwrap();
            second.save_state().unwrap();
            second.resume().unwrap();

            drive(&second, 0, &[(register::STATUS, 0)]);
            for queue in 0..3 {
                let at = Driver::new(second.ram().memory(), queue).registers().descriptors;
                second.ram().write(at, &[0; 4096]).unwrap();
            }
            drive(&second, 0, &handshake_for(&second, FEATURES, 3));
            offer_buffers(&second);
            eventually("the kernel takes over again", || by_kernel(&second));
            passes(&first, &second, "hello again");
        }
    });
}

#[test]
fn the_kernel_leaves_the_memory_of_a_driver_that_has_reset_its_device() {
    on_a_bridge(|| {
        let [first, second] = MACS.map(receiving_vm);
        passes(&first, &second, "hello");
        drive(&second, 0, &[(register::STATUS, 0)]);
        assert!(!by_kernel(&second));
        let ram = |vm: &Vm| {
            let mut bytes = vec![0; (u64::from(SIZE) * BUFFER_BYTES) as usize];
            vm.ram().read(BUFFERS, &mut bytes).unwrap();
            (bytes, received(vm))
        };
        let before = ram(&second);
        broadcast(&first, "for no driver");
        assert_eq!(ram(&second), before);
    });
}
