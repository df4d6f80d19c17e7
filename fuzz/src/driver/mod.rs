//! The guest's driver of a device: a [`Script`] lists its actions, `Driver` carries them out.
//!
//! The driver knows where its rings are, so that the device understands most of its requests and
//! executes them deeply; but it may also write any register and any byte of memory at any time.

mod copier;
mod host;
mod image;
mod network;
mod pci;
mod request;
mod ring;
mod sockets;
mod state;

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use tempfile::NamedTempFile;
use vmm_core::DeviceConfig;
use vmm_core::virtio::balloon::FreePages;
use vmm_core::virtio::block::{Access, BlockConfig, SeedConfig};
use vmm_core::virtio::fuzzing::Bench;

pub use copier::{Copier, copied_disk};
pub use host::{Host, Operator, Scene};
pub use image::{Damaged, image};
pub use network::{NetRequest, Network, network};
pub use pci::{ConfigScript, MsixScript, PciReach, run_config, run_msix};
pub use request::{BalloonRequest, DiskRequest, Fill, Request};
use ring::{Descriptor, Ring};
pub use sockets::{Program, Programs, VsockRequest, conversation, sockets};
use state::Damage;

/// Size of the guest's memory, in bytes.
pub const MEMORY_BYTES: u64 = 4 << 20;
/// Offsets of registers (virtio 1.2, 4.2.2).
mod register {
    pub(super) const DRIVER_FEATURES: u64 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(super) const QUEUE_SEL: u64 = 0x30;
    pub(super) const QUEUE_NUM: u64 = 0x38;
    pub(super) const QUEUE_READY: u64 = 0x44;
    pub(super) const QUEUE_NOTIFY: u64 = 0x50;
    pub(super) const STATUS: u64 = 0x70;
    pub(super) const QUEUE_PLACES: [u64; 3] = [0x80, 0x90, 0xa0];
}
/// Feature bits that every driver must accept: VERSION_1.
const VERSION_1_HIGH: u32 = 1;
/// Limit on the queues that a driver here sets up.
const QUEUES_MAX: u8 = 5;

/// The actions of a driver, in order; requests are of type `R`, and `H` are the actions of the host
/// in between.
#[derive(Debug, Arbitrary)]
pub struct Script<R, H = ()> {
    /// Offered features that the driver accepts during a compliant setup.
    features: u32,
    #[arbitrary(with = crate::all)]
    steps: Vec<Step<R, H>>,
}

/// About half of all steps are compliant, so that the others find a working state to break.
#[derive(Debug, Arbitrary)]
enum Step<R, H> {
    Lawful(Lawful<R, H>),
    Lawless(Lawless),
}

#[derive(Debug, Arbitrary)]
enum Lawful<R, H> {
    /// Makes a request, and notifies the device if `notify`.
    Ask {
        queue: u8,
        request: R,
        notify: bool,
    },
    Notify {
        queue: u8,
    },
    /// Resets the device and sets it up again.
    SetUp,
    /// Reads registers at any offset, in any width.
    Read {
        offset: u16,
        len: u8,
    },
    /// An action of the host.
    Host(H),
    /// The device is saved and restored, as in a migration.
    Move,
}

#[derive(Debug, Arbitrary)]
enum Lawless {
    /// Writes a register.
    Write { register: u8, value: u32 },
    /// Writes registers at any offset, in any width.
    WriteAnywhere { offset: u16, bytes: Vec<u8> },
    /// Writes memory.
    Poke { at: u32, bytes: Vec<u8> },
    /// Offers descriptors that may be invalid.
    Offer { queue: u8, descriptors: Vec<Descriptor>, head: u8 },
    /// Sets the index of the available ring.
    Index { queue: u8, index: u16 },
    /// The device is restored from a state that a lying peer has modified.
    Arrive(Damage),
}

/// A sequence of accesses to the registers of one device.
#[derive(Debug, Arbitrary)]
pub struct RegisterScript {
    device: u8,
    /// Whether the device is first set up by a compliant driver.
    set_up: bool,
    #[arbitrary(with = crate::all)]
    steps: Vec<RegisterStep>,
}

#[derive(Debug, Arbitrary)]
enum RegisterStep {
    /// An existing register, with a plausible value.
    Known {
        register: u8,
        value: Value,
    },
    Any {
        offset: u16,
        bytes: Vec<u8>,
    },
    Read {
        offset: u16,
        len: u8,
    },
    Move,
}

#[derive(Debug, Arbitrary)]
enum Value {
    /// Small values are status steps, queue numbers, and feature pages.
    Small(u8),
    Page(u16),
    Any(u32),
}

/// Registers that can be written (virtio 1.2, 4.2.2).
const WRITABLE_REGISTERS: [u64; 16] = [
    0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0x100,
];

/// Executes `script` on a device.
///
/// # Panics
/// If the device does what it must not.
pub fn run_registers(script: &RegisterScript) -> Reach {
    let (disk, seed) = (disk(), seed());
    let configs = [&DeviceConfig::Rng, &DeviceConfig::Balloon(FreePages::Reported), &disk, &seed];
    let bench = match usize::from(script.device) % (configs.len() + 2) {
        4 => network().bench,
        5 => bench(&DeviceConfig::Vsock { cid: 3 }),
        device => bench(configs[device]),
    };
    let mut driver = Driver::new(bench, 0);
    if script.set_up {
        driver.set_up();
    }
    for step in &script.steps {
        match step {
            RegisterStep::Known { register, value } => {
                let offset = WRITABLE_REGISTERS[usize::from(*register) % WRITABLE_REGISTERS.len()];
                let value = match value {
                    Value::Small(value) => (*value).into(),
                    Value::Page(page) => u32::from(*page) << 12,
                    Value::Any(value) => *value,
                };
                driver.register(offset, value);
            }
            RegisterStep::Any { offset, bytes } => {
                driver.bench.write((*offset).into(), &bytes[..bytes.len().min(8)]);
            }
            RegisterStep::Read { offset, len } => {
                driver.bench.read((*offset).into(), &mut vec![0xaa; usize::from(len % 9)]);
            }
            RegisterStep::Move => driver.go_elsewhere(),
        }
    }
    driver.reach
}

fn bench(config: &DeviceConfig) -> Bench {
    Bench::new(config, MEMORY_BYTES).unwrap_or_else(|error| panic!("no device: {error}"))
}

/// A disk of 1 MiB in a temporary file of this process.
///
/// # Panics
/// If there is no room for temporary files.
pub fn disk() -> DeviceConfig {
    static DISK: OnceLock<(NamedTempFile, BlockConfig)> = OnceLock::new();
    let create = || {
        let file = NamedTempFile::new().unwrap_or_else(|error| panic!("no file: {error}"));
        file.as_file().set_len(1 << 20).unwrap_or_else(|error| panic!("no disk: {error}"));
        let config = BlockConfig::new(file.path(), Access::ReadWrite, "fuzzed");
        (file, config.unwrap_or_else(|error| panic!("no disk: {error}")))
    };
    DeviceConfig::Block(DISK.get_or_init(create).1.clone())
}

/// A seed disk with one document.
///
/// # Panics
/// Never: a seed may have this document.
pub fn seed() -> DeviceConfig {
    let document = ("user-data".to_owned(), b"#cloud-config".to_vec());
    let config = SeedConfig::new([document]).unwrap_or_else(|error| panic!("no seed: {error}"));
    DeviceConfig::Seed(config)
}

/// How far a script got, which shows whether it exercises the code behind the first checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reach {
    /// Number of requests that the device has answered.
    pub answered: u64,
    /// How often the device was saved and restored.
    pub moved: u64,
    /// Output that reached the host: frames, or bytes.
    pub came_through: u64,
}

/// Executes `script` in `scene`.
///
/// # Panics
/// If the device does what it must not.
pub fn run<R: Request, H: Host>(scene: Scene<H::Side>, script: &Script<R, H>) -> Reach {
    let Scene { bench, mut side } = scene;
    let mut driver = Driver::new(bench, script.features);
    driver.set_up();
    for step in &script.steps {
        if driver.take(step, &mut side).is_none() {
            break;
        }
    }
    driver.reach
}

/// A device of `config`, whose host does nothing.
///
/// # Panics
/// If there is no such device.
pub fn alone(config: &DeviceConfig) -> Scene<()> {
    Scene { bench: bench(config), side: () }
}

struct Driver {
    bench: Bench,
    features: u32,
    rings: Vec<Ring>,
    reach: Reach,
}

impl Driver {
    fn new(bench: Bench, features: u32) -> Self {
        let rings = (0..QUEUES_MAX).map(Ring::new).collect();
        Self { bench, features, rings, reach: Reach::default() }
    }

    fn register(&mut self, offset: u64, value: u32) {
        self.bench.write(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.bench.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The setup of virtio 1.2, 3.1.1.
    fn set_up(&mut self) {
        for status in [0, 1, 3] {
            self.register(register::STATUS, status);
        }
        self.register(register::DRIVER_FEATURES_SEL, 0);
        self.register(0x14, 0);
        let offered = self.read(0x10);
        self.register(register::DRIVER_FEATURES, offered & self.features);
        self.register(register::DRIVER_FEATURES_SEL, 1);
        self.register(register::DRIVER_FEATURES, VERSION_1_HIGH);
        self.register(register::STATUS, 0xb);
        for queue in 0..QUEUES_MAX {
            self.register(register::QUEUE_SEL, queue.into());
            self.register(register::QUEUE_NUM, ring::SIZE.into());
            let ring = &mut self.rings[usize::from(queue)];
            ring.clear(self.bench.ram());
            let places = ring.places();
            for (offset, place) in register::QUEUE_PLACES.into_iter().zip(places) {
                self.register(offset, place);
            }
            self.register(register::QUEUE_READY, 1);
        }
        self.register(register::STATUS, 0xf);
    }

    /// Executes a step; `None` if the script cannot continue.
    fn take<R: Request, H: Host>(&mut self, step: &Step<R, H>, side: &mut H::Side) -> Option<()> {
        match step {
            Step::Lawful(step) => {
                self.keep_the_rules(step, side);
                Some(())
            }
            Step::Lawless(step) => self.break_the_rules(step),
        }
    }

    fn keep_the_rules<R: Request, H: Host>(&mut self, step: &Lawful<R, H>, side: &mut H::Side) {
        match step {
            Lawful::SetUp => self.set_up(),
            Lawful::Ask { queue, request, notify } => self.ask(*queue, request, *notify),
            Lawful::Read { offset, len } => {
                self.bench.read((*offset).into(), &mut vec![0xaa; usize::from(len % 9)]);
            }
            Lawful::Notify { queue } => self.notify(*queue),
            Lawful::Host(step) => self.reach.came_through += step.act(&mut self.bench, side),
            Lawful::Move => self.go_elsewhere(),
        }
    }

    fn break_the_rules(&mut self, step: &Lawless) -> Option<()> {
        match step {
            Lawless::Write { register, value } => {
                self.register(u64::from(*register) * 4, *value);
            }
            Lawless::WriteAnywhere { offset, bytes } => {
                self.bench.write((*offset).into(), &bytes[..bytes.len().min(8)]);
            }
            // A write outside of memory has no effect.
            Lawless::Poke { at, bytes } => ring::put(self.bench.ram(), (*at).into(), bytes),
            Lawless::Offer { queue, descriptors, head } => {
                let ring = &mut self.rings[usize::from(queue % QUEUES_MAX)];
                ring.offer_as_is(self.bench.ram(), descriptors, (*head).into());
                self.notify(*queue);
            }
            Lawless::Index { queue, index } => {
                let ring = &mut self.rings[usize::from(queue % QUEUES_MAX)];
                ring.set_index(self.bench.ram(), *index);
                self.notify(*queue);
            }
            Lawless::Arrive(damage) => return self.arrive(damage),
        }
        Some(())
    }

    fn ask(&mut self, queue: u8, request: &impl Request, notify: bool) {
        let buffers = request.lay_out(self.bench.ram());
        let queue = request.queue(queue);
        let ring = &mut self.rings[usize::from(queue % QUEUES_MAX)];
        ring.offer(self.bench.ram(), &buffers);
        if notify {
            self.notify(queue);
        }
    }

    fn notify(&mut self, queue: u8) {
        let queue = queue % QUEUES_MAX;
        let ring = &self.rings[usize::from(queue)];
        let before = ring.used(self.bench.ram());
        self.bench.write(register::QUEUE_NOTIFY, &u32::from(queue).to_le_bytes());
        let after = ring.used(self.bench.ram());
        self.reach.answered += u64::from(after.wrapping_sub(before));
    }

    /// Whatever a driver has done, the device can be saved and its state restored.
    fn go_elsewhere(&mut self) {
        let (state, _) = match self.bench.save() {
            Ok(saved) => saved,
            Err(error) => panic!("a device cannot be saved: {error}"),
        };
        if let Err(error) = self.bench.load(&state, None) {
            panic!("a device does not take its own state: {error}: {state:?}");
        }
        self.reach.moved += 1;
    }

    /// A modified state must be refused or be harmless.
    fn arrive(&mut self, damage: &Damage) -> Option<()> {
        let (mut state, _) = self.bench.save().ok()?;
        damage.apply(&mut state);
        self.bench.load(&state, None).ok()
    }
}
