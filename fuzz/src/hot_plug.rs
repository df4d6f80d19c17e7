//! A guest's PCI bus, on which disks come and go: whatever its vCPUs write to the ports and
//! registers, while its operator attaches and detaches, and while it moves.

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use tempfile::NamedTempFile;
use vmm_core::virtio::block::{Access, BlockConfig, EngineChoice};
use vmm_core::{DeviceConfig, MachineKind, PciAddress, Vm, VmShape, VmState};

use crate::driver::MEMORY_BYTES;

/// Ports of hot-plug, and of the way to configuration space.
const PORTS: [u16; 2] = [0xae00, 0xcf8];
const EJECT: u16 = 0xae08;
/// Configuration space of the bus, in memory.
const ECAM: u64 = 0xe800_0000;
/// Bytes of a function's configuration space there.
const FUNCTION_BYTES: u64 = 0x8000;
const BAR: u64 = 0x10;
/// In the command register: memory and bus master.
const COMMAND: u64 = 0x04;
/// Where functions may be.
const APERTURE: u64 = 0xc000_0000;
/// Different disks; each can be attached once at a time.
const DISKS: usize = 3;
/// Most moves of a guest, each of which makes a virtual machine.
const MOVES_MAX: u64 = 2;
/// The vendor of all functions here but the bridge.
const VIRTIO: u16 = 0x1af4;

/// What happens to a bus, in order.
#[derive(Debug, Arbitrary)]
pub struct BusScript {
    #[arbitrary(with = crate::all)]
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// The operator attaches a disk.
    Insert {
        disk: u8,
    },
    /// The operator asks the guest to let go of a disk.
    Ask {
        disk: u8,
    },
    /// The operator gives up on that.
    Withdraw {
        device: u8,
    },
    /// What the guest has let go of is taken away.
    Take,
    /// The guest lets go of devices, a bit each.
    Eject {
        devices: u32,
    },
    Port {
        port: u8,
        bytes: Vec<u8>,
        is_write: bool,
    },
    /// Writes a register of a function's configuration space, or reads it.
    Config {
        device: u8,
        offset: u16,
        bytes: Vec<u8>,
        is_write: bool,
    },
    /// Puts a function anywhere.
    Place {
        device: u8,
        page: u16,
    },
    /// Writes a register of a function, or reads it.
    Register {
        device: u8,
        offset: u16,
        bytes: Vec<u8>,
        is_write: bool,
    },
    /// The guest moves to another host.
    Move,
}

/// How far a script got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BusReach {
    /// How many devices were attached.
    pub inserted: u64,
    /// How many devices the guest has let go of that were taken away.
    pub taken: u64,
    /// How often the guest moved.
    pub moved: u64,
}

/// Executes `script` on a bus.
///
/// # Panics
/// If the bus does what it must not, or there is no KVM.
pub fn run(script: &BusScript) -> BusReach {
    let mut guest = Guest::new();
    for step in &script.steps {
        guest.take(step);
        guest.check();
    }
    guest.reach
}

struct Guest {
    vm: Vm,
    reach: BusReach,
}

/// Returns a disk that any number of guests may have.
fn disk(number: u8) -> BlockConfig {
    static DISKS_MADE: OnceLock<[(NamedTempFile, BlockConfig); DISKS]> = OnceLock::new();
    let create = |number: usize| {
        let file = NamedTempFile::new().unwrap_or_else(|error| panic!("no file: {error}"));
        file.as_file().set_len(4096).unwrap_or_else(|error| panic!("no disk: {error}"));
        let config = BlockConfig::new(file.path(), Access::ReadOnly, &format!("disk-{number}"));
        let config = config.unwrap_or_else(|error| panic!("no disk: {error}"));
        (file, config.with_engine(EngineChoice::Sync))
    };
    let all = DISKS_MADE.get_or_init(|| std::array::from_fn(create));
    all[usize::from(number) % DISKS].1.clone()
}

fn create(shape: &VmShape) -> Vm {
    let vm = Vm::create(shape, Box::new(std::io::sink()));
    vm.unwrap_or_else(|error| panic!("no guest: {error}"))
}

/// The address of a function's configuration space.
fn config_at(device: u8) -> u64 {
    ECAM + u64::from(device % 32) * FUNCTION_BYTES
}

impl Guest {
    fn new() -> Self {
        static SHAPE: OnceLock<VmShape> = OnceLock::new();
        let of_host = || {
            let shape = VmShape::for_host(MEMORY_BYTES, 1);
            let shape = shape.unwrap_or_else(|error| panic!("no shape: {error}"));
            let devices = vec![DeviceConfig::Rng, DeviceConfig::Block(disk(0))];
            VmShape { devices, machine: MachineKind::Pci, ..shape }
        };
        Self { vm: create(SHAPE.get_or_init(of_host)), reach: BusReach::default() }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Insert { disk: number } => {
                let inserted = self.vm.insert(&DeviceConfig::Block(disk(*number)));
                self.reach.inserted += u64::from(inserted.is_ok());
            }
            Step::Ask { disk: number } => {
                let path = disk(*number).path().to_owned();
                let is_it = |config: &DeviceConfig| match config {
                    DeviceConfig::Block(disk) => disk.path() == path,
                    _ => false,
                };
                let asked = self.vm.request_ejection(is_it);
                asked.unwrap_or_else(|error| panic!("a PCI machine has hot-plug: {error}"));
            }
            Step::Withdraw { device } => {
                self.vm.withdraw_ejection_request(address((*device).clamp(1, 31)));
            }
            Step::Take => self.reach.taken += self.vm.take_ejected().len() as u64,
            Step::Eject { devices } => self.vm.write_bus_port(EJECT, &devices.to_le_bytes()),
            Step::Port { port, bytes, is_write } => {
                let port = PORTS[usize::from(port >> 7)] + u16::from(port % 16);
                let mut bytes = bytes[..bytes.len().min(8)].to_vec();
                if *is_write {
                    self.vm.write_bus_port(port, &bytes);
                } else {
                    self.vm.read_bus_port(port, &mut bytes);
                }
            }
            Step::Config { device, offset, bytes, is_write } => {
                self.access(config_at(*device) + u64::from(offset % 0x110), bytes, *is_write);
            }
            Step::Place { device, page } => {
                let place = APERTURE as u32 + (u32::from(*page) << 13);
                self.vm.write_bus(config_at(*device) + BAR, &place.to_le_bytes());
                self.vm.write_bus(config_at(*device) + COMMAND, &[6, 0]);
            }
            Step::Register { device, offset, bytes, is_write } => {
                let place = u64::from(self.config_word(*device, BAR) & !0xf);
                self.access(place + u64::from(offset % 0x8000), bytes, *is_write);
            }
            Step::Move if self.reach.moved < MOVES_MAX => self.go_elsewhere(),
            Step::Move => {}
        }
    }

    fn access(&self, address: u64, bytes: &[u8], is_write: bool) {
        let bytes = &bytes[..bytes.len().min(8)];
        match is_write {
            true => self.vm.write_bus(address, bytes),
            false => self.vm.read_bus(address, &mut bytes.to_vec()),
        }
    }

    fn config_word(&self, device: u8, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.vm.read_bus(config_at(device) + offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// The guest sees the devices that it has and has not let go of, at their places, and no
    /// others.
    fn check(&self) {
        let shape = self.vm.shape();
        let slots: Vec<usize> = shape.slotted().map(|(slot, _)| slot).collect();
        for device in 1..32 {
            let has_it = slots.contains(&(usize::from(device) - 1));
            let is_there = has_it && !self.vm.has_ejected(address(device));
            let vendor = self.config_word(device, 0) as u16;
            assert!(vendor == if is_there { VIRTIO } else { 0xffff }, "{device}: {vendor:#x}");
        }
        assert!(!self.vm.has_ejected(address(1)), "a device that does not leave");
    }

    /// Whatever has happened, the guest can be saved, and is the same elsewhere.
    fn go_elsewhere(&mut self) {
        let (shape, state) = (self.vm.shape(), self.vm.save_state());
        let state = state.unwrap_or_else(|error| panic!("a guest cannot be saved: {error}"));
        let bytes = state.to_bytes().unwrap_or_else(|error| panic!("no bytes: {error}"));
        let read = VmState::from_bytes(&bytes).unwrap_or_else(|error| panic!("unread: {error}"));
        let encoded = shape.to_bytes().unwrap_or_else(|error| panic!("no bytes: {error}"));
        let decoded = VmShape::from_bytes(&encoded);
        assert!(decoded.is_ok_and(|decoded| decoded == *shape), "another shape: {shape:?}");
        let next = create(&shape);
        next.load_state(&read).unwrap_or_else(|error| panic!("a guest does not arrive: {error}"));
        let again = next.save_state().unwrap_or_else(|error| panic!("not saved again: {error}"));
        assert!(again.devices == state.devices, "devices change as they move");
        self.vm = next;
        self.reach.moved += 1;
    }
}

/// The address of the guest's device of this number, which is below 32.
fn address(device: u8) -> PciAddress {
    let address = format!("0000:00:{device:02x}.0").parse();
    address.unwrap_or_else(|error| panic!("no address: {error}"))
}
