//! Valid and hostile use of a queue by its driver.

use proptest::prelude::*;

use super::*;
use crate::virtio::buffers::tests::memory;
use crate::virtio::testing::{Driver, INDIRECT, NEXT, SIZE, WRITABLE};

const START: QueuePosition = QueuePosition { next_available: 0, next_used: 0 };

fn queue(memory: &RamMap) -> Queue {
    queue_at(memory, START)
}

fn queue_at(memory: &RamMap, position: QueuePosition) -> Queue {
    let registers = Driver::new(memory, 0).registers();
    Queue::new(memory, &registers, Suppression::Flag, position).unwrap()
}

#[test]
fn requests_come_out_whole_and_in_order_and_go_back() {
    let memory = memory();
    let (driver, mut queue) = (Driver::new(&memory, 0), queue(&memory));
    driver.offer(&[(0x100, 16, 0), (0x200, 512, WRITABLE), (0x400, 1, WRITABLE)]);
    driver.offer(&[(0x500, 8, 0)]);

    let first = queue.pop(&memory).unwrap().unwrap();
    assert_eq!((first.readable.bytes(), first.writable.bytes()), (16, 513));
    let second = queue.pop(&memory).unwrap().unwrap();
    assert_eq!((second.head, second.readable.bytes(), second.writable.bytes()), (3, 8, 0));
    assert!(queue.pop(&memory).unwrap().is_none());

    queue.push_used(&memory, second.head, 0).unwrap();
    queue.push_used(&memory, first.head, 513).unwrap();
    assert_eq!(driver.used(), [(3, 0), (0, 513)]);
    assert_eq!(queue.position(), QueuePosition { next_available: 2, next_used: 2 });
}

#[test]
fn a_queue_continues_where_it_was_saved() {
    let memory = memory();
    let (driver, mut before) = (Driver::new(&memory, 0), queue(&memory));
    driver.offer(&[(0x100, 1, 0)]);
    driver.offer(&[(0x200, 2, 0)]);
    before.pop(&memory).unwrap().unwrap();
    let registers = driver.registers();
    let mut after = Queue::new(&memory, &registers, Suppression::Flag, before.position()).unwrap();
    assert_eq!(after.pop(&memory).unwrap().unwrap().readable.bytes(), 2);
}

#[test]
fn rings_outside_memory_and_impossible_positions_are_refused() {
    let memory = memory();
    let good = Driver::new(&memory, 0).registers();
    let open = |registers, position| {
        Queue::new(&memory, &registers, Suppression::Index, position).unwrap_err()
    };
    for address in [(1 << 20) - 16, 1 << 20, !15] {
        assert_eq!(open(QueueRegisters { descriptors: address, ..good }, START), QueueError::Rings);
        assert_eq!(open(QueueRegisters { available: address, ..good }, START), QueueError::Rings);
        assert_eq!(open(QueueRegisters { used: address, ..good }, START), QueueError::Rings);
    }
    let behind = QueuePosition { next_available: 3, next_used: 4 };
    assert_eq!(open(good, behind), QueueError::Available);
    let far = QueuePosition { next_available: SIZE + 1, next_used: 0 };
    assert_eq!(open(good, far), QueueError::Available);
}

#[test]
fn claims_beyond_the_queue_are_refused() {
    let memory = memory();
    let (driver, mut many) = (Driver::new(&memory, 0), queue(&memory));
    driver.set_available_index(SIZE + 1);
    assert_eq!(many.pop(&memory).unwrap_err(), QueueError::Available);

    driver.set_available_index(0);
    driver.make_available(SIZE);
    let mut other = queue(&memory);
    assert_eq!(other.pop(&memory).unwrap_err(), QueueError::Available);
    assert_eq!(other.push_used(&memory, SIZE, 0).unwrap_err(), QueueError::Available);
}

#[test]
fn chains_that_do_not_end_are_refused() {
    let memory = memory();
    let refusal = |prepare: &dyn Fn(&Driver<'_>)| {
        let driver = Driver::new(&memory, 0);
        driver.set_available_index(0);
        driver.make_available(0);
        prepare(&driver);
        queue(&memory).pop(&memory).unwrap_err()
    };
    let to_itself = |driver: &Driver<'_>| driver.own_descriptor(0, (0x100, 1, NEXT), 0);
    assert_eq!(refusal(&to_itself), QueueError::Chain);
    let nowhere = |driver: &Driver<'_>| driver.own_descriptor(0, (0x100, 1, NEXT), SIZE);
    assert_eq!(refusal(&nowhere), QueueError::Chain);
    let no_ram = |driver: &Driver<'_>| driver.own_descriptor(0, (u64::MAX, 16, INDIRECT), 0);
    assert_eq!(refusal(&no_ram), QueueError::Chain);
    let odd = |driver: &Driver<'_>| driver.own_descriptor(0, (0x8000, 17, INDIRECT), 0);
    assert_eq!(refusal(&odd), QueueError::Chain);
    let nested = |driver: &Driver<'_>| {
        driver.own_descriptor(0, (0x8000, 32, INDIRECT), 0);
        driver.descriptor(0x8000, (0x8000, 32, INDIRECT), 0);
    };
    assert_eq!(refusal(&nested), QueueError::Chain);
    let longest = |driver: &Driver<'_>| {
        driver.own_descriptor(0, (0x2_0000, 16 * 4096, INDIRECT), 0);
        for index in 0..4096 {
            driver.descriptor(0x2_0000 + index * 16, (0x100, 1, NEXT), index as u16 + 1);
        }
    };
    assert_eq!(refusal(&longest), QueueError::Chain);
    let mixed = |driver: &Driver<'_>| {
        driver.own_descriptor(0, (0x100, 1, WRITABLE | NEXT), 1);
        driver.own_descriptor(1, (0x200, 1, 0), 0);
    };
    assert_eq!(refusal(&mixed), QueueError::Chain);
}

#[test]
fn an_indirect_chain_counts_as_one_descriptor() {
    let memory = memory();
    let (driver, mut queue) = (Driver::new(&memory, 0), queue(&memory));
    for index in 0..40 {
        let flags = if index < 39 { NEXT } else { 0 };
        driver.descriptor(0x8000 + index * 16, (0x100, 2, flags), index as u16 + 1);
    }
    driver.own_descriptor(5, (0x8000, 40 * 16, INDIRECT), 0);
    driver.make_available(5);
    assert_eq!(queue.pop(&memory).unwrap().unwrap().readable.bytes(), 80);
}

#[test]
fn buffers_outside_memory_are_refused() {
    let memory = memory();
    for (address, len) in [(1 << 20, 1), (0, u32::MAX), (u64::MAX, 2)] {
        let driver = Driver::new(&memory, 0);
        driver.set_available_index(0);
        driver.own_descriptor(0, (address, len, WRITABLE), 0);
        driver.make_available(0);
        assert_eq!(queue(&memory).pop(&memory).unwrap_err(), QueueError::Buffer);
    }
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let memory = memory();
    let mut queue = queue(&memory);
    assert!(queue.wants_interrupt(&memory).unwrap());
    let available = Driver::new(&memory, 0).registers().available;
    memory.write_obj(1u16, GuestAddress(available)).unwrap();
    assert!(!queue.wants_interrupt(&memory).unwrap());
}

proptest! {
    /// Puts random bytes where the queue is: nothing panics, and every request's buffers lie in
    /// memory.
    #[test]
    fn random_rings_are_harmless(
        page in prop::collection::vec(any::<u8>(), 0x800),
        small in any::<bool>(),
        available in 0..=SIZE,
    ) {
        let memory = memory();
        let driver = Driver::new(&memory, 0);
        let mut page = page;
        if small {
            // Mostly valid addresses and lengths, so that chains get long.
            for descriptor in page[..0x400].chunks_exact_mut(16) {
                descriptor[2..8].fill(0);
                descriptor[10..12].fill(0);
                descriptor[14] %= SIZE as u8 + 1;
                descriptor[15] = 0;
            }
        }
        memory.write_slice(&page, GuestAddress(driver.registers().descriptors)).unwrap();
        driver.set_available_index(available);
        let mut queue = queue(&memory);
        for _ in 0..=SIZE {
            match queue.pop(&memory) {
                Ok(Some(chain)) => {
                    prop_assert!(chain.head < SIZE);
                    prop_assert!(chain.readable.slices(&memory).is_ok());
                    prop_assert!(chain.writable.slices(&memory).is_ok());
                }
                Ok(None) | Err(_) => break,
            }
        }
    }
}

#[test]
fn a_queue_continues_where_the_kernel_stopped() {
    let memory = memory();
    let (driver, mut queue) = (Driver::new(&memory, 0), queue(&memory));
    for place in 1..=3 {
        driver.offer(&[(place * 0x100, place as u32, 0)]);
    }
    assert_eq!(queue.registers(), driver.registers());
    queue.pop(&memory).unwrap().unwrap();
    assert!(!queue.is_settled());
    queue.take_back(1);
    assert!(queue.is_settled());
    // The kernel has answered two of them.
    let mut kernel = queue_at(&memory, START);
    for _ in 0..2 {
        let chain = kernel.pop(&memory).unwrap().unwrap();
        kernel.push_used(&memory, chain.head, 0).unwrap();
    }
    queue.go_on_at(&memory, 2).unwrap();
    assert!(queue.is_settled());
    let next = queue.pop(&memory).unwrap().unwrap();
    assert_eq!(next.readable.bytes(), 3);
    queue.push_used(&memory, next.head, 0).unwrap();
    assert_eq!(queue.position(), QueuePosition { next_available: 3, next_used: 3 });
    for impossible in [2, 3 + SIZE + 1] {
        assert_eq!(queue.go_on_at(&memory, impossible), Err(QueueError::Kernel), "{impossible}");
    }
    assert_eq!(queue.position(), QueuePosition { next_available: 3, next_used: 3 });
}
