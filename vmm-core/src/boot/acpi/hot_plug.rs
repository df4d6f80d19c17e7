//! Hot-plug on the PCI bus: a slot for each device that can come and go, and the methods with which
//! the guest learns of that and lets go of a device (ACPI specification 6.5, sections 5.6.6 and
//! 6.3). The registers that they use are in `pci/hot_plug.rs`.

use acpi_tables::aml::{
    And, Arg, Device, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule,
    If, Local, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path, ShiftLeft, Store,
};
use acpi_tables::{Aml, AmlSink};

use super::{Encoded, encode};
use crate::devices::HOT_PLUG_IRQ;
use crate::pci::{FUNCTIONS_MAX, HOT_PLUG_PORT, HOT_PLUG_PORTS};

/// Values of a notification (table 5.178): look for a new device, and let go of one.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
/// The registers, as AML has them.
const INSERTED: &str = "PINS";
const ASKED: &str = "PASK";
const EJECT: &str = "PEJT";
/// The method that notifies the slots of what the registers say.
const SCAN: &str = "SCAN";

/// No place for the result of an operation.
struct Nowhere;

impl Aml for Nowhere {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0);
    }
}

/// Returns what goes into the host bridge: registers, slots, and the method that scans them.
pub(super) fn in_bridge() -> Vec<Encoded> {
    let mut parts = registers();
    parts.extend((1..=FUNCTIONS_MAX).map(slot));
    parts.push(scan());
    parts
}

/// Returns what the event device does when it is interrupted: scan, if it is about hot-plug.
pub(super) fn on_event() -> Encoded {
    let scan = MethodCall::new(Path::new(&format!("\\_SB_.PCI0.{SCAN}")), vec![]);
    let is_it = Equal::new(&Arg(0), &HOT_PLUG_IRQ);
    Encoded(encode(&If::new(&is_it, vec![&scan])))
}

fn registers() -> Vec<Encoded> {
    const BITS: usize = 32;
    let region =
        OpRegion::new("PHPR".into(), OpRegionSpace::SystemIO, &HOT_PLUG_PORT, &HOT_PLUG_PORTS);
    let named =
        |name: &str| FieldEntry::Named(name.as_bytes().try_into().unwrap_or_default(), BITS);
    let field = Field::new(
        "PHPR".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        [INSERTED, ASKED, EJECT].map(named).into(),
    );
    vec![Encoded(encode(&region)), Encoded(encode(&field))]
}

/// Describes the slot of device number `device`, function 0. The guest ejects by its number.
fn slot(device: usize) -> Encoded {
    let (address, number) = ((device as u32) << 16, device as u8);
    let bit = ShiftLeft::new(&Nowhere, &1u8, &number);
    let register = Path::new(EJECT);
    let eject = Store::new(&register, &bit);
    Encoded(encode(&Device::new(
        name_of(device),
        vec![
            &Name::new("_ADR".into(), &address),
            &Name::new("_SUN".into(), &number),
            &Method::new("_EJ0".into(), 1, true, vec![&eject]),
        ],
    )))
}

fn name_of(device: usize) -> Path {
    Path::new(&format!("S{device:03}"))
}

fn scan() -> Encoded {
    let (inserted, asked) = (Path::new(INSERTED), Path::new(ASKED));
    let inserted = Store::new(&Local(0), &inserted);
    let asked = Store::new(&Local(1), &asked);
    let notifications: Vec<Encoded> = (1..=FUNCTIONS_MAX)
        .flat_map(|device| {
            [(Local(0), DEVICE_CHECK), (Local(1), EJECT_REQUEST)]
                .map(|(register, value)| notify_if(device, &register, value))
        })
        .collect();
    let mut body: Vec<&dyn Aml> = vec![&inserted, &asked];
    body.extend(notifications.iter().map(|one| one as &dyn Aml));
    Encoded(encode(&Method::new(SCAN.into(), 0, true, body)))
}

/// Notifies a slot if its bit in `register` is set.
fn notify_if(device: usize, register: &Local, value: u8) -> Encoded {
    let bit = 1u32 << device;
    let is_set = And::new(&Nowhere, register, &bit);
    let name = name_of(device);
    let notify = Notify::new(&name, &value);
    Encoded(encode(&If::new(&is_set, vec![&notify])))
}
