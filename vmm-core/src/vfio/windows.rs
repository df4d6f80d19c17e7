//! Where a device's BARs may be, which parts of them a guest reaches without us, and where the
//! BARs of a guest's first devices are. Pure code.

use std::ops::Range;

use super::view::Bar;
use crate::memory::PAGE_BYTES;
use crate::pci::APERTURE;

const PAGE: u64 = PAGE_BYTES as u64;
/// Where BARs below 4 GiB are given out from, downwards: the other devices are at the other end.
const ASSIGNED: Range<u64> = APERTURE.start + (64 << 20)..APERTURE.end;

/// Returns those parts of the `mappable` ones of a BAR, whole pages, that touch none of the
/// `holes`.
pub(super) fn without(mappable: &[Range<u64>], holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let whole = |area: &Range<u64>| area.start.next_multiple_of(PAGE)..area.end / PAGE * PAGE;
    let mut areas: Vec<_> = mappable.iter().map(whole).collect();
    for hole in holes.iter().filter(|hole| !hole.is_empty()) {
        let hole = hole.start / PAGE * PAGE..hole.end.next_multiple_of(PAGE);
        areas = areas
            .into_iter()
            .flat_map(|area| {
                let before = area.start..area.end.min(hole.start);
                let behind = area.start.max(hole.end)..area.end;
                [before, behind]
            })
            .collect();
    }
    areas.retain(|area| area.start < area.end);
    areas
}

/// Returns whether a device may be at these addresses: not where memory, the bridge or an interrupt
/// controller is. RAM ends at `ram_end`.
pub(super) fn is_in_reach(range: &Range<u64>, ram_end: u64) -> bool {
    let is_low = APERTURE.start <= range.start && range.end <= APERTURE.end;
    let is_high = range.start >= ram_end.max(1 << 32);
    range.start < range.end && (is_low || is_high)
}

/// Gives addresses to the BARs of devices, those of each in a list, as firmware does; a device gets
/// all of its addresses or none, and then the guest's software has to find room.
pub(super) fn assign(devices: &[Vec<Bar>]) -> Vec<Vec<(Bar, u64)>> {
    let mut end = ASSIGNED.end;
    let assign_all = |bars: &Vec<Bar>| {
        let mut by_size = bars.clone();
        by_size.sort_by_key(|bar| std::cmp::Reverse(bar.bytes));
        let (mut next, mut assigned) = (end, Vec::new());
        for bar in by_size {
            let bytes = bar.bytes.max(PAGE);
            let Some(address) = next.checked_sub(bytes).map(|start| start / bytes * bytes) else {
                return Vec::new();
            };
            if address < ASSIGNED.start {
                return Vec::new();
            }
            assigned.push((bar, address));
            next = address;
        }
        end = next;
        assigned
    };
    devices.iter().map(assign_all).collect()
}

#[cfg(test)]
mod tests {
    use super::super::view::View;
    use super::*;

    #[test]
    fn pages_with_a_hole_are_left_out() {
        let page = |first: u64, end: u64| first * PAGE..end * PAGE;
        let whole = [page(0, 8)];
        assert_eq!(without(&whole, &[]), whole);
        let holes = [PAGE + 16..PAGE + 96, 3 * PAGE..3 * PAGE + 8, 0..0];
        assert_eq!(without(&whole, &holes), [page(0, 1), page(2, 3), page(4, 8)]);
        assert_eq!(without(&[page(0, 1)], std::slice::from_ref(&(8..16))), []);
        assert_eq!(without(&[0..PAGE - 1, PAGE + 1..3 * PAGE - 1], &[]), []);
        let at_the_end = 7 * PAGE..20 * PAGE;
        assert_eq!(without(&whole, std::slice::from_ref(&at_the_end)), [page(0, 7)]);
    }

    #[test]
    fn devices_are_where_nothing_else_is() {
        let ram_end = 8 << 30;
        for (start, bytes, is_possible) in [
            (0xd000_0000, 0x1000, true),
            (0xe7ff_f000, 0x1000, true),
            (0xe7ff_f000, 0x2000, false),
            (0, 0x1000, false),
            (0xfee0_0000, 0x1000, false),
            (4 << 30, 0x1000, false),
            (8 << 30, 0x1000, true),
        ] {
            assert_eq!(is_in_reach(&(start..start + bytes), ram_end), is_possible, "{start:#x}");
        }
        assert!(!is_in_reach(&(1 << 30..2 << 30), 1 << 30), "the hole below the bridge's windows");
    }

    #[test]
    fn all_bars_of_a_device_get_addresses_or_none() {
        let mut host = [0; 256];
        host[0x34] = 0x40;
        host[0x40] = 0x11;
        host[0x44] = 1;
        host[0x48] = 1;
        let bars = |sizes: [u64; 6]| View::new(&host, sizes).unwrap().bars().to_vec();
        let small = bars([16, 1 << 20, 4096, 0, 0, 0]);
        let large = bars([4096, 1 << 30, 0, 0, 0, 0]);
        let assigned = assign(&[small.clone(), large, small]);
        assert_eq!(assigned.iter().map(Vec::len).collect::<Vec<_>>(), [3, 0, 3]);
        let mut ranges: Vec<_> = assigned
            .concat()
            .into_iter()
            .map(|(bar, address)| {
                assert!(address.is_multiple_of(bar.bytes.max(PAGE)));
                address..address + bar.bytes
            })
            .collect();
        ranges.sort_by_key(|range| range.start);
        assert!(ranges.windows(2).all(|two| two[0].end <= two[1].start), "{ranges:x?}");
        assert!(ranges.iter().all(|range| is_in_reach(range, 1 << 32)));
    }
}
