//! The thread with a device whose queue and descriptor the kernel takes over and gives back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::sleep;

use super::*;
use crate::devices::IrqLine;
use crate::memory::GuestRam;
use crate::virtio::Signals;
use crate::virtio::device::{Device, DeviceKind, Progress, Rings};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::QueueError;
use crate::virtio::signals::ConfigSpace;
use crate::virtio::testing::Driver;

/// Time in which a thread would notice what it waits for. Too short a time hides a mistake, and
/// makes none.
const A_WHILE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts what reaches it, and says what the kernel has.
#[derive(Debug)]
struct Counting {
    descriptor: EventFd,
    is_taken: Arc<AtomicBool>,
    processed: Arc<AtomicU32>,
    ready: Arc<AtomicU32>,
}

impl Device for Counting {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![16]
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::read_only(Vec::new())
    }

    fn process(&mut self, _index: usize, _rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        self.processed.fetch_add(1, Ordering::SeqCst);
        Ok(Progress::Idle)
    }

    fn watched(&self) -> Vec<RawFd> {
        vec![self.descriptor.as_raw_fd()]
    }

    fn unwatched(&self) -> Unwatched {
        match self.is_taken.load(Ordering::SeqCst) {
            true => Unwatched { queues: 1, descriptors: 1 },
            false => Unwatched::default(),
        }
    }

    fn ready(&mut self, _index: usize, _rings: &mut Rings<'_>) -> Result<(), QueueError> {
        let _ = self.descriptor.read();
        self.ready.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

struct Scene {
    worker: Worker,
    kick: EventFd,
    descriptor: EventFd,
    is_taken: Arc<AtomicBool>,
    processed: Arc<AtomicU32>,
    ready: Arc<AtomicU32>,
}

impl Scene {
    /// Creates a running device with a driver.
    fn new() -> Self {
        let [kick, descriptor] = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let (is_taken, processed, ready) = (Arc::default(), Arc::default(), Arc::default());
        let device = Counting {
            descriptor: descriptor.try_clone().unwrap(),
            is_taken: Arc::clone(&is_taken),
            processed: Arc::clone(&processed),
            ready: Arc::clone(&ready),
        };
        let ram = Arc::new(GuestRam::anonymous(4 << 20));
        let signals = Arc::new(Signals::new(device.config()));
        let interrupt = Interrupt::new(signals, Arc::new(IrqLine::unconnected()));
        let registers = [Driver::new(ram.memory(), 0).registers()];
        let mut backend = Backend::new(Box::new(device), ram, interrupt);
        backend.activate(0, &registers);
        backend.resume();
        let worker = Worker::start(backend, vec![kick.try_clone().unwrap()]).unwrap();
        let scene = Self { worker, kick, descriptor, is_taken, processed, ready };
        scene.await_seen((1, 0));
        scene
    }

    /// Has the kernel take the queue and the descriptor, or give them back.
    fn take(&self, is_taken: bool) {
        self.is_taken.store(is_taken, Ordering::SeqCst);
        // The thread asks the device before it waits again.
        self.worker.call(|_| ()).unwrap();
        sleep(A_WHILE);
    }

    fn signal(&self) {
        self.kick.write(1).unwrap();
        self.descriptor.write(1).unwrap();
    }

    #[track_caller]
    fn await_seen(&self, expected: (u32, u32)) {
        let start = Instant::now();
        while self.seen() != expected {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.seen());
            std::thread::yield_now();
        }
    }

    fn seen(&self) -> (u32, u32) {
        (self.processed.load(Ordering::SeqCst), self.ready.load(Ordering::SeqCst))
    }
}

#[test]
fn what_the_kernel_takes_does_not_wake_the_thread() {
    let scene = Scene::new();
    scene.signal();
    scene.await_seen((2, 1));
    scene.take(true);
    scene.signal();
    sleep(A_WHILE);
    assert_eq!(scene.seen(), (2, 1), "the kernel has both");
    assert_eq!(scene.kick.read().unwrap(), 1, "and the thread took no signal");
}

#[test]
fn what_the_kernel_left_is_found_when_it_gives_back() {
    let scene = Scene::new();
    scene.take(true);
    scene.signal();
    scene.take(false);
    scene.await_seen((2, 1));
}
