//! The SMBIOS tables, from which a guest's programs know what they run on and as whom: systemd,
//! cloud-init and inventories read them below /sys/class/dmi/id (DMTF DSP0134, version 3.6).
//!
//! Kernels that no firmware has started look for the entry point in the BIOS ROM's 64 KiB (section
//! 5.2.2). The VMM writes the tables at each boot. From then on they are guest memory and move with
//! it.

use uuid::Uuid;

use super::mptable::checksum;

/// Version of the specification that the structures follow, in the entry point: major, minor and
/// revision.
const VERSION: [u8; 3] = [3, 6, 0];
/// Bytes of the 64-bit entry point (table 2).
const ENTRY_POINT_BYTES: usize = 24;
const VENDOR: &str = "lighter";
const PRODUCT: &str = "lighter guest";
/// When this BIOS was released, as month, day and year: late enough for kernels not to look for the
/// faults of old ones.
const RELEASED: &str = "01/01/2026";

/// Builds the entry point and the tables of the guest `uuid`, for the address `gpa`, a multiple of
/// 16. A guest without an identity has the nil UUID, which SMBIOS takes for none.
pub(super) fn build(gpa: u64, uuid: Uuid) -> Vec<u8> {
    let tables = [bios(), system(uuid), chassis(), end()].concat();
    let mut point = b"_SM3_".to_vec();
    point.extend([0, ENTRY_POINT_BYTES as u8]);
    point.extend(VERSION);
    // The revision of the entry point, and a reserved byte.
    point.extend([1, 0]);
    point.extend((tables.len() as u32).to_le_bytes());
    point.extend((gpa + ENTRY_POINT_BYTES as u64).to_le_bytes());
    point[5] = checksum(&point);
    point.extend(tables);
    point
}

/// Encodes a structure: its header, its fields, and the strings that they number from 1 on.
fn structure(kind: u8, fields: &[u8], strings: &[&str]) -> Vec<u8> {
    const HEADER_BYTES: usize = 4;
    let mut bytes = vec![kind, (HEADER_BYTES + fields.len()) as u8];
    // Each kind occurs once, so its number serves as handle too.
    bytes.extend(u16::from(kind).to_le_bytes());
    bytes.extend(fields);
    strings.iter().for_each(|text| bytes.extend([text.as_bytes(), &[0]].concat()));
    if strings.is_empty() {
        bytes.push(0);
    }
    bytes.push(0);
    bytes
}

/// BIOS information (type 0): there is none, and that this is a virtual machine.
fn bios() -> Vec<u8> {
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    let mut fields = vec![1, 2, 0, 0, 3, 0];
    // Characteristics that are not supported (bit 3), and two extension bytes.
    fields.extend((1u64 << 3).to_le_bytes());
    fields.extend([0, VIRTUAL_MACHINE]);
    // No releases of a BIOS or of an embedded controller.
    fields.extend([0xff; 4]);
    structure(0, &fields, &[VENDOR, env!("CARGO_PKG_VERSION"), RELEASED])
}

/// System information (type 1): the guest's identity.
fn system(uuid: Uuid) -> Vec<u8> {
    const POWER_SWITCH: u8 = 6;
    let mut fields = vec![1, 2, 3, 4];
    fields.extend(uuid.to_bytes_le());
    fields.extend([POWER_SWITCH, 0, 0]);
    let serial = uuid.to_string();
    structure(1, &fields, &[VENDOR, PRODUCT, env!("CARGO_PKG_VERSION"), &serial])
}

/// Chassis (type 3), without which some programs take the guest for a laptop.
fn chassis() -> Vec<u8> {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    let mut fields = vec![1, OTHER, 0, 0, 0, SAFE, SAFE, SAFE, 3];
    // The vendor's own field, height, power cords, elements and the SKU: none.
    fields.extend([0; 9]);
    structure(3, &fields, &[VENDOR])
}

/// The end of the tables (type 127).
fn end() -> Vec<u8> {
    structure(127, &[], &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: Uuid = Uuid::from_u128(0x00112233_4455_6677_8899_aabbccddeeff);

    /// The structures: type, formatted bytes and strings.
    fn parse(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut found = Vec::new();
        while let [kind, len, ..] = bytes {
            let (formatted, rest) = bytes.split_at(usize::from(*len));
            let end = rest.windows(2).position(|pair| pair == [0, 0]).expect("two zeros");
            let strings = rest[..end].split(|byte| *byte == 0);
            let strings = strings.map(|text| String::from_utf8(text.to_vec()).unwrap());
            found.push((*kind, formatted.to_vec(), strings.collect()));
            bytes = &rest[end + 2..];
        }
        found
    }

    #[test]
    fn the_entry_point_leads_to_the_tables() {
        let bytes = build(0xf_8000, UUID);
        let (point, tables) = bytes.split_at(ENTRY_POINT_BYTES);
        assert_eq!(&point[..5], b"_SM3_");
        assert_eq!(checksum(point), 0);
        assert_eq!(u32::from_le_bytes(point[12..16].try_into().unwrap()), tables.len() as u32);
        assert_eq!(u64::from_le_bytes(point[16..24].try_into().unwrap()), 0xf_8018);
        let kinds: Vec<_> = parse(tables).into_iter().map(|(kind, ..)| kind).collect();
        assert_eq!(kinds, [0, 1, 3, 127]);
    }

    #[test]
    fn structures_have_the_lengths_of_their_version() {
        let lengths: Vec<_> = parse(&build(0, UUID)[ENTRY_POINT_BYTES..])
            .into_iter()
            .map(|(kind, formatted, _)| (kind, formatted.len()))
            .collect();
        assert_eq!(lengths, [(0, 0x18), (1, 0x1b), (3, 0x16), (127, 4)]);
    }

    #[test]
    fn the_guests_identity_is_its_uuid_and_serial_number() {
        let tables = parse(&build(0, UUID)[ENTRY_POINT_BYTES..]);
        let (_, formatted, strings) = &tables[1];
        let mixed = [
            0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff,
        ];
        assert_eq!(formatted[8..24], mixed, "the first three fields are little-endian");
        assert_eq!(strings[3], UUID.to_string());
        assert_eq!(&strings[..2], ["lighter", "lighter guest"]);
    }
}
