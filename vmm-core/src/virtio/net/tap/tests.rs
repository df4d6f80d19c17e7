//! Rejected configurations; taps that carry frames are tested end to end, in network namespaces.

use super::*;

#[test]
fn errors_an_operator_can_fix_are_explained() {
    let said = |number| explained(io::Error::from_raw_os_error(number)).to_string();
    assert!(said(libc::EPERM).contains("CAP_NET_ADMIN"));
    assert!(said(libc::EBUSY).contains("in use"));
    assert!(said(libc::ENOMEM).contains("memory"));
    let several = other_kind("t0", true).to_string();
    assert!(several.contains("`ip tuntap add t0 mode tap multi_queue`"), "{several}");
    assert!(other_kind("t0", false).to_string().contains("queues=2 to 8"));
}

#[test]
fn other_devices_are_refused_as_taps_by_name() {
    let mtu = |link| mtu_of(&link).unwrap_err().to_string();
    let refused = mtu(NetLink::Tap("lo".to_owned()));
    assert_eq!(refused, "cannot use network interface lo: it is not a tap");
    let missing = mtu(NetLink::Tap("none-such".to_owned()));
    assert!(missing.contains("`ip tuntap add none-such mode tap`"), "{missing}");
}

#[test]
fn no_tap_has_the_address_of_its_guest() {
    for (guest, tap) in [
        ("52:54:00:12:34:56", "fe:54:00:12:34:56"),
        ("fe:54:00:12:34:56", "fa:54:00:12:34:56"),
        ("fa:54:00:12:34:56", "fe:54:00:12:34:56"),
    ] {
        let tap: MacAddress = tap.parse().unwrap();
        assert_eq!(own_address(guest.parse().unwrap()), tap.bytes(), "{guest}");
    }
}
