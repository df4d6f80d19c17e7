//! A device as a PCI function: its configuration space and its MSI-X table, accessed at any offset
//! and in any width.

use arbitrary::Arbitrary;
use vmm_core::virtio::balloon::FreePages;
use vmm_core::virtio::fuzzing::Bench;
use vmm_core::{DeviceConfig, MachineKind};

use super::ring::{self, Ring};
use super::{MEMORY_BYTES, disk, seed};

/// Offsets in the configuration space.
mod config {
    pub(super) const COMMAND: usize = 0x04;
    pub(super) const BAR: usize = 0x10;
    pub(super) const CAPABILITIES: usize = 0x34;
    pub(super) const MSIX_CONTROL: usize = 0x42;
    /// Capability through which the BAR is reached.
    pub(super) const ACCESS: usize = 0x90;
}

/// Offsets in the BAR.
mod bar {
    pub(super) const BYTES: u64 = 0x8000;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const TABLE: u64 = 0x4000;
    pub(super) const PENDING: u64 = 0x5000;
}

/// Queues of a balloon, and with them the number of its vectors.
const QUEUES: u8 = 5;
const VECTORS: u64 = QUEUES as u64 + 1;

/// How far a script got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PciReach {
    /// How often the device was saved and restored.
    pub moved: u64,
    /// How often it had another address afterwards.
    pub relocated: u64,
    /// How often an interrupt was pending.
    pub pending: u64,
}

/// A sequence of accesses to a function's configuration space.
#[derive(Debug, Arbitrary)]
pub struct ConfigScript {
    device: u8,
    #[arbitrary(with = crate::all)]
    steps: Vec<ConfigStep>,
}

#[derive(Debug, Arbitrary)]
enum ConfigStep {
    /// Writes a register that can be written.
    Known {
        register: u8,
        value: u32,
        bytes: u8,
    },
    Any {
        offset: u16,
        bytes: Vec<u8>,
    },
    Read {
        offset: u16,
        len: u8,
    },
    /// Chooses a part of the BAR, and writes and reads it through configuration space.
    Through {
        offset: u16,
        length: u8,
        value: u32,
    },
    Move,
}

/// Registers that can be written.
const WRITABLE: [usize; 8] = [
    config::COMMAND,
    config::BAR,
    0x0c,
    0x3c,
    config::MSIX_CONTROL,
    config::ACCESS + 8,
    config::ACCESS + 12,
    config::ACCESS + 16,
];

/// Executes `script` on a function.
///
/// # Panics
/// If the function does what it must not.
pub fn run_config(script: &ConfigScript) -> PciReach {
    let mut function = Function::new(device(script.device));
    let identity = function.identity();
    for step in &script.steps {
        let before = function.bench.window();
        match step {
            ConfigStep::Known { register, value, bytes } => {
                let register = WRITABLE[usize::from(*register) % WRITABLE.len()];
                let bytes = [1, 2, 4][usize::from(bytes % 3)];
                function.bench.write_config(register, &value.to_le_bytes()[..bytes]);
            }
            ConfigStep::Any { offset, bytes } => {
                let offset = usize::from(*offset % 0x1010);
                function.bench.write_config(offset, &bytes[..bytes.len().min(16)]);
            }
            ConfigStep::Read { offset, len } => {
                let mut data = vec![0xaa; usize::from(len % 17)];
                function.bench.read_config((*offset % 0x1010).into(), &mut data);
            }
            ConfigStep::Through { offset, length, value } => {
                function.access(u32::from(*offset), u32::from(*length % 5), *value);
            }
            ConfigStep::Move => function.go_elsewhere(),
        }
        assert!(function.identity() == identity, "a read-only register changed");
        let after = function.bench.window();
        if let Some(window) = &after {
            assert!(window.start % bar::BYTES == 0 && window.end - window.start == bar::BYTES);
        }
        function.reach.relocated += u64::from(after != before);
    }
    function.reach
}

/// A device of one of all types, by a number.
fn device(number: u8) -> Bench {
    let balloon = DeviceConfig::Balloon(FreePages::Reported);
    let vsock = DeviceConfig::Vsock { cid: 3 };
    let configs = [DeviceConfig::Rng, balloon, disk(), seed(), vsock];
    match configs.get(usize::from(number) % (configs.len() + 1)) {
        Some(config) => on_pci(config),
        None => {
            let network = Bench::with_network(MachineKind::Pci, MEMORY_BYTES);
            network.unwrap_or_else(|error| panic!("no device: {error}")).0
        }
    }
}

fn on_pci(config: &DeviceConfig) -> Bench {
    Bench::on_pci(config, MEMORY_BYTES).unwrap_or_else(|error| panic!("no device: {error}"))
}

/// A sequence of accesses to the MSI-X table of a device that interrupts meanwhile.
#[derive(Debug, Arbitrary)]
pub struct MsixScript {
    #[arbitrary(with = crate::all)]
    steps: Vec<MsixStep>,
}

#[derive(Debug, Arbitrary)]
enum MsixStep {
    /// Writes a word of an entry.
    Entry {
        vector: u8,
        word: u8,
        value: u32,
    },
    /// Masks an entry or not.
    Mask {
        vector: u8,
        masked: bool,
    },
    Any {
        offset: u16,
        bytes: Vec<u8>,
    },
    Read {
        offset: u16,
        len: u8,
    },
    Control {
        enabled: bool,
        masked: bool,
    },
    /// Sets the vector of a cause: that of queue 0, or of the configuration.
    Vector {
        queue: bool,
        vector: u16,
    },
    /// Has the device interrupt: the operator changes its target.
    Interrupt {
        pages: u32,
    },
    Move,
}

/// Executes `script` on a balloon.
///
/// # Panics
/// If the function does what it must not.
pub fn run_msix(script: &MsixScript) -> PciReach {
    let mut function = Function::new(on_pci(&DeviceConfig::Balloon(FreePages::Reported)));
    function.set_up();
    for step in &script.steps {
        match step {
            MsixStep::Entry { vector, word, value } => {
                let entry = bar::TABLE + u64::from(*vector) % VECTORS * 16;
                function.bench.write(entry + u64::from(word % 4) * 4, &value.to_le_bytes());
            }
            MsixStep::Mask { vector, masked } => {
                let entry = bar::TABLE + u64::from(*vector) % VECTORS * 16;
                function.bench.write(entry + 12, &u32::from(*masked).to_le_bytes());
            }
            MsixStep::Any { offset, bytes } => {
                let offset = bar::TABLE + u64::from(*offset) % 0x1100;
                function.bench.write(offset, &bytes[..bytes.len().min(8)]);
            }
            MsixStep::Read { offset, len } => {
                let mut data = vec![0xaa; usize::from(len % 9)];
                function.bench.read(bar::TABLE + u64::from(*offset) % 0x1100, &mut data);
            }
            MsixStep::Control { enabled, masked } => function.control(*enabled, *masked),
            MsixStep::Vector { queue, vector } => {
                let register = if *queue { 0x1a } else { 0x10 };
                function.bench.write(register, &vector.to_le_bytes());
            }
            MsixStep::Interrupt { pages } => function.bench.set_balloon(*pages),
            MsixStep::Move => function.go_elsewhere(),
        }
        function.nothing_is_held_back();
    }
    function.reach
}

struct Function {
    bench: Bench,
    reach: PciReach,
}

impl Function {
    fn new(bench: Bench) -> Self {
        Self { bench, reach: PciReach::default() }
    }

    fn config_word(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        self.bench.read_config(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn word(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.bench.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// What a driver recognises the function by: its IDs and class, and its list of capabilities.
    fn identity(&self) -> Vec<u32> {
        let mut words = vec![self.config_word(0), self.config_word(8), self.config_word(0x2c)];
        let mut at = self.config_word(config::CAPABILITIES) & 0xff;
        while at != 0 {
            let head = self.config_word(at as usize);
            words.extend([at, head & 0xffff]);
            assert!(words.len() < 64, "the capabilities have no end");
            at = head >> 8 & 0xff;
        }
        words
    }

    fn control(&mut self, enabled: bool, masked: bool) {
        let control = u16::from(enabled) << 15 | u16::from(masked) << 14;
        self.bench.write_config(config::MSIX_CONTROL, &control.to_le_bytes());
    }

    fn access(&mut self, offset: u32, length: u32, value: u32) {
        self.bench.write_config(config::ACCESS + 8, &offset.to_le_bytes());
        self.bench.write_config(config::ACCESS + 12, &length.to_le_bytes());
        self.bench.write_config(config::ACCESS + 16, &value.to_le_bytes());
        self.config_word(config::ACCESS + 16);
    }

    /// The setup of virtio 1.2, 3.1.1, with vector 0 for the configuration and 1 for queue 0.
    fn set_up(&mut self) {
        for status in [0u8, 1, 3] {
            self.bench.write(bar::STATUS, &[status]);
        }
        for (page, features) in [(0u32, 0u32), (1, 1)] {
            self.bench.write(0x08, &page.to_le_bytes());
            self.bench.write(0x0c, &features.to_le_bytes());
        }
        self.bench.write(bar::STATUS, &[0xb]);
        self.bench.write(0x10, &0u16.to_le_bytes());
        for queue in (0..QUEUES).rev() {
            self.bench.write(0x16, &u16::from(queue).to_le_bytes());
            self.bench.write(0x18, &ring::SIZE.to_le_bytes());
            let mut ring = Ring::new(queue);
            ring.clear(self.bench.ram());
            for (offset, place) in [0x20, 0x28, 0x30].into_iter().zip(ring.places()) {
                self.bench.write(offset, &u64::from(place).to_le_bytes());
            }
            self.bench.write(0x1c, &1u16.to_le_bytes());
        }
        self.bench.write(0x1a, &1u16.to_le_bytes());
        self.bench.write(bar::STATUS, &[0xf]);
        self.control(true, false);
    }

    /// No interrupt is pending that is not masked, and none of a vector that does not exist.
    fn nothing_is_held_back(&mut self) {
        let control = self.config_word(config::MSIX_CONTROL - 2) >> 16;
        let pending = self.word(bar::PENDING);
        assert!(pending >> VECTORS == 0, "pending: {pending:#x}");
        for vector in (0..VECTORS).filter(|vector| pending >> vector & 1 == 1) {
            let masked = self.word(bar::TABLE + vector * 16 + 12) & 1 == 1;
            assert!(masked || control >> 14 != 0b10, "vector {vector} is held back");
            self.reach.pending += 1;
        }
    }

    /// Whatever a driver has done, the function can be saved and its state restored.
    fn go_elsewhere(&mut self) {
        let (state, mut function) = match self.bench.save() {
            Ok(saved) => saved,
            Err(error) => panic!("a device cannot be saved: {error}"),
        };
        if let Err(error) = self.bench.load(&state, function.as_ref()) {
            panic!("a function does not take its own state: {error}: {function:?}");
        }
        let again = match self.bench.save() {
            Ok((_, again)) => again,
            Err(error) => panic!("a device that has moved cannot be saved: {error}"),
        };
        // The vectors of all queues are raised again: an interrupt may have been on its way.
        if let (Some(before), Some(after)) = (&mut function, &again) {
            before.interrupts.msix.pending |= after.interrupts.msix.pending;
        }
        assert!(again == function, "a function changes as it moves");
        self.reach.moved += 1;
    }
}
