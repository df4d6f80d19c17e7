//! Devices that come and go, on real KVM; the test plays the guest's ACPI code.

use std::path::Path;

use super::*;
use crate::pci::HotPlugState;
use crate::virtio::block::{Access, BlockConfig};
use crate::virtio::{DeviceError, PciState};
use crate::vm::Ejected;

/// Ports of the registers.
const INSERTED: u16 = 0xae00;
const ASKED: u16 = 0xae04;
const EJECT: u16 = 0xae08;
/// Bytes of configuration space of a device.
const NEXT: u32 = 0x8000;
/// Where the test puts the registers of an inserted device.
const PLACE: u32 = 0xc400_0000;

fn disk_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

fn disk(path: &Path) -> DeviceConfig {
    DeviceConfig::Block(BlockConfig::new(path, Access::ReadWrite, "").unwrap())
}

fn register(vm: &Vm, port: u16) -> u32 {
    let mut word = [0; 4];
    vm.machine.read_port(port, &mut word);
    u32::from_le_bytes(word)
}

/// The guest lets go of the devices with these bits.
fn eject(vm: &Vm, devices: u32) {
    vm.machine.write_port(EJECT, &devices.to_le_bytes());
}

/// A guest that has had line 10 interrupt it by [`VECTOR`], with interrupts off.
fn listening() -> Vm {
    const SELECT: u32 = 0xfec0_0000;
    const DATA: u32 = 0xfec0_0010;
    let vm = vm_on_pci(vec![]);
    let writes = [(SELECT, 0x25, 4), (DATA, 0, 4), (SELECT, 0x24, 4), (DATA, VECTOR, 4)];
    vm.ram().write(CODE, &program(&writes)).unwrap();
    vm.resume().unwrap();
    assert_eq!(event(&vm), VmEvent::Doorbell { vcpu: 0, value: 1 });
    vm
}

/// The guest sets up the disk behind `config` at [`PLACE`], and reads its first sector.
fn read_sector(vm: &Vm, config: u32) -> u8 {
    const HEADER: u64 = 0x38_0000;
    const STATUS_BYTE: u64 = 0x38_1000;
    drive(vm, &[(config + 0x10, PLACE, 4), (config + 4, 6, 2)]);
    let mut driver = handshake(vm, PLACE);
    driver.retain(|(address, ..)| *address != CONFIG + 0x42);
    driver.insert(0, (config + 0x42, 0x8000, 2));
    drive(vm, &driver);
    vm.ram().write(HEADER, &[0; 16]).unwrap();
    vm.ram().write(STATUS_BYTE, &[0xff]).unwrap();
    Driver::new(vm.ram().memory(), 0).offer(&[
        (HEADER, 16, 0),
        (BUFFER, 512, WRITABLE),
        (STATUS_BYTE, 1, WRITABLE),
    ]);
    drive(vm, &[(PLACE + NOTIFY, 0, 2)]);
    wait_for_used(vm, 1);
    assert_eq!(word(vm, STATUS_BYTE) & 0xff, 0, "the request's status");
    word(vm, BUFFER) as u8
}

/// A running guest with an entropy device.
fn running() -> Vm {
    let vm = vm_on_pci(vec![DeviceConfig::Rng]);
    vm.resume().unwrap();
    vm
}

fn refusal(vm: &Vm, config: &DeviceConfig) -> String {
    let before = vm.shape();
    let refused = vm.insert(config).unwrap_err().to_string();
    assert_eq!(vm.shape(), before);
    refused
}

#[test]
fn a_running_guest_gets_a_disk_and_lets_go_of_it() {
    let (vm, file) = (running(), disk_file());
    std::fs::write(file.path(), vec![0x5a; 1 << 20]).unwrap();
    assert_eq!(read(&vm, CONFIG + NEXT), u32::MAX);
    let place = vm.insert(&disk(file.path())).unwrap();
    assert_eq!(place.to_string(), "0000:00:02.0");
    assert!(!vm.has_read_of_devices());
    assert_eq!(register(&vm, INSERTED), 1 << 2);
    assert!(vm.has_read_of_devices());
    assert_eq!(read(&vm, CONFIG + NEXT), 0x1042_1af4);
    assert_eq!(read(&vm, CONFIG + NEXT + 0x10), 0, "it decodes nothing yet");
    assert_eq!(read_sector(&vm, CONFIG + NEXT), 0x5a);
    await_interrupt_paused(&vm);
    let locked = refusal(&running(), &disk(file.path()));
    assert!(locked.contains("in use by another guest"), "{locked}");

    let is_disk = |it: &DeviceConfig| matches!(it, DeviceConfig::Block(_));
    assert!(vm.request_ejection(is_disk).unwrap().is_some());
    assert_eq!([ASKED, ASKED, INSERTED].map(|port| register(&vm, port)), [1 << 2, 0, 0]);
    let place = vm.request_ejection(is_disk).unwrap().unwrap();
    vm.withdraw_ejection_request(place);
    assert_eq!(register(&vm, ASKED), 0);
    assert!(vm.take_ejected().is_empty());
    eject(&vm, 1 << 2);
    assert_eq!(event(&vm), VmEvent::Ejected);
    assert_eq!([read(&vm, CONFIG + NEXT), read(&vm, PLACE + STATUS)], [u32::MAX; 2]);
    vm.settle_ejected();
    let [gone] = &vm.take_ejected()[..] else { panic!("one has left") };
    let own = disk(file.path());
    assert!(matches!(gone, Ejected::Virtio { config, lost: None } if *config == own));
    assert_eq!(*vm.shape(), *running().shape());
    assert_eq!(vm.save_paused().pci.unwrap().hot_plug, HotPlugState::default());
    assert_eq!(running().insert(&disk(file.path())).unwrap(), place);
    let next = disk_file();
    assert_eq!(vm.insert(&disk(next.path())).unwrap().to_string(), "0000:00:03.0", "not its slot");
}

impl Vm {
    fn save_paused(&self) -> VmState {
        self.pause().unwrap();
        let state = self.save_state().unwrap();
        self.resume().unwrap();
        state
    }
}

fn await_interrupt_paused(vm: &Vm) {
    vm.pause().unwrap();
    await_interrupt(vm);
    vm.resume().unwrap();
}

#[test]
fn a_guest_is_interrupted_when_a_device_comes_and_when_it_is_to_leave() {
    let (vm, file) = (listening(), disk_file());
    vm.insert(&disk(file.path())).unwrap();
    await_interrupt_paused(&vm);
    let forget = |vcpu: &mut Vcpu| {
        let mut lapic = vcpu.fd().get_lapic().unwrap();
        lapic.regs[0x200..0x280].fill(0);
        vcpu.fd().set_lapic(&lapic).unwrap();
    };
    vm.pause().unwrap();
    vm.on_vcpu(0, forget).unwrap();
    assert!(!has_interrupt(&vm));
    vm.resume().unwrap();
    assert!(vm.request_ejection(|_| true).unwrap().is_some());
    await_interrupt_paused(&vm);
}

#[test]
fn devices_stay_in_their_slots_when_one_leaves_and_the_guest_moves() {
    let files = [disk_file(), disk_file(), disk_file()];
    let [first, second, third] = files.each_ref().map(|file| disk(file.path()));
    let vm = vm_on_pci(vec![first, DeviceConfig::Rng]);
    vm.resume().unwrap();
    assert_eq!(vm.insert(&second).unwrap().to_string(), "0000:00:03.0");
    eject(&vm, 1 << 1 | 1 << 2);
    assert_eq!(vm.take_ejected().len(), 1, "entropy does not leave");
    assert_eq!(vm.disks().len(), 1);
    assert_eq!(read(&vm, CONFIG), u32::MAX);
    std::fs::write(files[1].path(), vec![0x77; 1 << 20]).unwrap();
    assert_eq!(read_sector(&vm, CONFIG + 2 * NEXT), 0x77);
    vm.pause().unwrap();
    let shape = VmShape::from_bytes(&vm.shape().to_bytes().unwrap()).unwrap();
    let state = VmState::from_bytes(&vm.save_state().unwrap().to_bytes().unwrap()).unwrap();
    assert_eq!(state.pci.as_ref().unwrap().hot_plug.inserted, 1 << 3);
    vm.release().unwrap();

    let next = Vm::create(&shape, Box::new(std::io::sink())).unwrap();
    copy_memory(&vm, &next);
    next.load_state(&state).unwrap();
    next.resume().unwrap();
    assert_eq!(read(&next, PLACE + STATUS) & 0xff, 0xf);
    assert_eq!(register(&next, INSERTED), 1 << 3, "it is told there");
    assert_eq!(next.insert(&third).unwrap().to_string(), "0000:00:04.0", "not one that was left");
    assert_eq!(next.shape().slotted().map(|(slot, _)| slot).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn a_device_that_leaves_during_a_move_leaves_at_the_destination() {
    let (vm, file) = (running(), disk_file());
    vm.insert(&disk(file.path())).unwrap();
    assert_eq!(read_sector(&vm, CONFIG + NEXT), 0);
    let shape = vm.shape();
    eject(&vm, 1 << 2);
    vm.pause().unwrap();
    let state = VmState::from_bytes(&vm.save_state().unwrap().to_bytes().unwrap()).unwrap();
    vm.release().unwrap();
    let next = Vm::create(&shape, Box::new(std::io::sink())).unwrap();
    copy_memory(&vm, &next);
    next.load_state(&state).unwrap();
    next.resume().unwrap();
    assert_eq!(event(&next), VmEvent::Ejected);
    assert_eq!([read(&next, CONFIG + NEXT), read(&next, PLACE + STATUS)], [u32::MAX; 2]);
    assert_eq!(next.take_ejected().len(), 1);
    assert_eq!(*next.shape(), *running().shape());
}

#[test]
fn a_reset_keeps_what_was_inserted_and_ends_what_was_to_leave() {
    let (vm, files) = (running(), [disk_file(), disk_file()]);
    for file in &files {
        vm.insert(&disk(file.path())).unwrap();
    }
    let leaves = disk(files[0].path());
    assert!(vm.request_ejection(|it| *it == leaves).unwrap().is_some());
    vm.pause().unwrap();
    let (devices, pci) = vm.machine.bus.power_on_state();
    let state = VmState { devices, pci, ..vm.save_state().unwrap() };
    vm.load_state(&state).unwrap();
    vm.resume().unwrap();
    assert_eq!(event(&vm), VmEvent::Ejected);
    assert_eq!(read(&vm, CONFIG + NEXT), u32::MAX);
    assert_eq!(read(&vm, CONFIG + 2 * NEXT + 0x10), BAR + 2 * NEXT, "a kernel finds it there");
    assert_eq!(register(&vm, INSERTED), 0);
    assert_eq!(vm.take_ejected().len(), 1);
    assert_eq!(vm.shape().slotted().map(|(slot, _)| slot).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn a_paused_guest_gets_a_disk_that_nothing_else_has_meanwhile() {
    let (vm, file) = (vm_on_pci(vec![]), disk_file());
    vm.insert(&disk(file.path())).unwrap();
    assert!(refusal(&running(), &disk(file.path())).contains("in use"));
    vm.resume().unwrap();
    assert_eq!(read_sector(&vm, CONFIG), 0);
}

#[test]
fn a_file_that_was_handed_over_is_closed_when_its_disk_has_left() {
    let (vm, file) = (running(), disk_file());
    let config = BlockConfig::new(file.path(), Access::ReadWrite, "").unwrap();
    let files = config.open_files().unwrap();
    let handed = BlockConfig::handed(files, Access::ReadWrite, "").unwrap();
    assert_eq!(handed.path(), config.path());
    vm.insert(&DeviceConfig::Block(handed)).unwrap();
    assert_eq!(vm.shape().devices[1], DeviceConfig::Block(config));
    assert_eq!(read_sector(&vm, CONFIG + NEXT), 0);
    // The test has the file open itself.
    let open = || {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let links = open.flatten().filter_map(|it| std::fs::read_link(it.path()).ok());
        links.filter(|link| link == file.path()).count()
    };
    assert_eq!(open(), 2);
    eject(&vm, 1 << 2);
    assert_eq!(vm.take_ejected().len(), 1);
    assert_eq!(open(), 1);
}

#[test]
fn files_that_are_not_those_of_a_disk_are_refused() {
    let file = disk_file();
    let refused = |files: Vec<std::fs::File>| {
        BlockConfig::handed(files, Access::ReadWrite, "").unwrap_err().to_string()
    };
    let open = |options: &mut std::fs::OpenOptions| options.open(file.path()).unwrap();
    assert!(refused(vec![]).contains("no disk"));
    let read_only = open(std::fs::OpenOptions::new().read(true));
    let appends = open(std::fs::OpenOptions::new().read(true).append(true));
    for wrong in [read_only, appends] {
        assert!(refused(vec![wrong]).contains("not open for reading and writing"));
    }
    let [null, folder] = ["/dev/null", "/"].map(|path| std::fs::File::open(path).unwrap());
    let read =
        |file| BlockConfig::handed(vec![file], Access::ReadOnly, "").unwrap_err().to_string();
    assert!(read(null).contains("neither a regular file"));
    assert!(read(folder).contains("neither a regular file"));
    let lost = open(std::fs::OpenOptions::new().read(true).write(true));
    std::fs::remove_file(file.path()).unwrap();
    assert!(!refused(vec![lost]).is_empty(), "it has no path");
}

/// Two vCPUs let go of a device while they use it, another thread takes it away and inserts the
/// next one in the same slot, the only one that is free: each is taken away once.
#[test]
fn devices_leave_while_they_are_used_and_others_come() {
    let vm = vm_on_pci(vec![DeviceConfig::Rng; 30]);
    vm.resume().unwrap();
    let before = vm.shape();
    let config = CONFIG + 30 * NEXT;
    let files: Vec<_> = (0..20).map(|_| disk_file()).collect();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = || {
            while !is_over.load(Ordering::Acquire) {
                eject(&vm, 1 << 31);
                read(&vm, config);
                drive(&vm, &[(config + 0x10, PLACE, 4), (config + 4, 6, 2)]);
                read(&vm, PLACE + STATUS);
            }
        };
        let vcpus = [scope.spawn(busy), scope.spawn(busy)];
        let mut gone = 0;
        for (inserted, file) in files.iter().enumerate() {
            vm.insert(&disk(file.path())).unwrap();
            let deadline = Instant::now() + PATIENCE;
            while gone <= inserted {
                assert!(Instant::now() < deadline, "it does not leave");
                let left = vm.take_ejected();
                let is_whole = |one: &Ejected| matches!(one, Ejected::Virtio { lost: None, .. });
                assert!(left.iter().all(is_whole));
                gone += left.len();
            }
        }
        is_over.store(true, Ordering::Release);
        vcpus.into_iter().for_each(|vcpu| vcpu.join().unwrap());
        assert_eq!(gone, files.len());
    });
    assert_eq!(vm.shape(), before);
    assert_eq!(vm.save_paused().pci.unwrap().hot_plug, HotPlugState::default());
    vm.insert(&disk(files[0].path())).unwrap();
    assert_eq!(read_sector(&vm, config), 0);
    await_interrupt_paused(&vm);
}

#[test]
fn a_request_to_leave_does_not_go_along_with_the_guest() {
    let (vm, file) = (running(), disk_file());
    vm.insert(&disk(file.path())).unwrap();
    assert!(vm.request_ejection(|it| *it != DeviceConfig::Rng).unwrap().is_some());
    let (shape, state) = (vm.shape(), vm.save_paused());
    vm.pause().unwrap();
    vm.release().unwrap();
    let next = Vm::create(&shape, Box::new(std::io::sink())).unwrap();
    next.load_state(&state).unwrap();
    assert_eq!([ASKED, INSERTED].map(|port| register(&next, port)), [0, 1 << 2]);
    let (_, pci) = next.machine.bus.power_on_state();
    assert_eq!(pci.unwrap().hot_plug.ejected, 0, "a reset leaves it there");
}

#[test]
fn what_cannot_be_inserted_is_refused() {
    let file = disk_file();
    let disk = disk(file.path());
    let mmio = Vm::create(&shape(16, 1), Box::new(std::io::sink())).unwrap();
    assert!(refusal(&mmio, &disk).contains("only on a PCI bus"));
    assert!(mmio.request_ejection(|_| true).unwrap_err().to_string().contains("only on a PCI bus"));
    let vm = running();
    assert!(refusal(&vm, &DeviceConfig::Rng).contains("only disks and network devices"));
    assert!(vm.request_ejection(|it| matches!(it, DeviceConfig::Rng)).unwrap().is_none());
    let full = vm_on_pci(vec![DeviceConfig::Rng; 31]);
    assert!(refusal(&full, &disk).contains("has 31 devices already"));
    let lost = DeviceConfig::Block(
        BlockConfig::new(file.path(), Access::ReadWrite, "").unwrap().at(Path::new("/nowhere")),
    );
    assert!(refusal(&vm, &lost).contains("/nowhere"));
    vm.stop();
    let refused = vm.insert(&disk).unwrap_err();
    assert!(matches!(refused, Error::WrongState { .. }), "{refused}");
    assert!(matches!(mmio.insert(&disk), Err(Error::Device(DeviceError::NoHotPlug))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A guest that writes and reads the registers as it likes, while devices come and are asked
    /// out: the list, the slots and the state stay those of one guest, which another VM can take.
    #[test]
    fn no_order_of_events_confuses_slots(
        steps in prop::collection::vec((0..5u8, any::<u32>()), 0..24),
    ) {
        let vm = running();
        let files: Vec<_> = (0..24).map(|_| disk_file()).collect();
        let mut new = files.iter();
        for (what, value) in steps {
            match what {
                0 | 1 => {
                    let file = new.next().unwrap();
                    vm.insert(&disk(file.path())).unwrap();
                }
                2 => eject(&vm, value),
                3 => {
                    let place = value as usize % vm.shape().devices.len();
                    let chosen = vm.shape().devices[place].clone();
                    vm.request_ejection(|it| *it == chosen).unwrap();
                    prop_assert_eq!(register(&vm, ASKED) & 3, 0, "the bridge and entropy stay");
                }
                _ => {
                    vm.take_ejected();
                }
            }
            let devices = vm.shape().devices.len();
            vm.shape().check().unwrap();
            prop_assert_eq!(vm.disks().len() + 1, devices);
        }
        vm.pause().unwrap();
        let state = VmState::from_bytes(&vm.save_state().unwrap().to_bytes().unwrap()).unwrap();
        let shape = VmShape::from_bytes(&vm.shape().to_bytes().unwrap()).unwrap();
        let next = Vm::create(&shape, Box::new(std::io::sink())).unwrap();
        next.load_state(&state).unwrap();
        let loaded = next.save_state().unwrap();
        let without_requests = |pci: Option<PciState>| pci.map(|mut pci| {
            (pci.hot_plug.asked, pci.hot_plug.leaving) = (0, 0);
            pci
        });
        prop_assert_eq!((loaded.devices, loaded.pci), (state.devices, without_requests(state.pci)));
        let left = vm.take_ejected().len();
        prop_assert_eq!(next.take_ejected().len(), left);
        prop_assert_eq!(next.shape(), vm.shape());
        let own = without_requests(vm.save_state().unwrap().pci);
        prop_assert_eq!(next.save_state().unwrap().pci, own);
    }
}
