//! A guest that can run nested guests: it can move exactly while it runs none.

use crate::fixtures::{Lab, StockGuest, holds, until};

/// Creates a virtual machine and holds it open.
const HOLD_A_VM: &str = "import fcntl, os, signal; vm = fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), 0xae01, 0); signal.pause()";

#[test]
fn a_guest_moves_unless_it_runs_guests() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    let guest = StockGuest::boot(&lab, here, 1, "--nested on");
    guest.sh(here, "modprobe kvm_amd").ok();
    let hold = format!("systemd-run --quiet --unit vm python3 -c \"{HOLD_A_VM}\"");
    guest.sh(here, &hold).ok();
    until("the guest runs a guest", || {
        let open = guest.sh(here, "ls -l /proc/$(systemctl show -P MainPID vm)/fd").stdout;
        holds(open.contains("kvm-vm"), open)
    });

    let words = ["the guest runs guests of its own", "EFER.SVME", "unload"];
    here.lighter(&format!("migrate debian {}", there.address())).complains(&words);
    here.lighter("save debian /var/tmp/debian.lighter").complains(&words);
    assert_eq!(here.state_of("debian").as_deref(), Some("running"));
    assert!(there.guests().is_empty());

    guest.sh(here, "systemctl stop vm && modprobe -r kvm_amd").ok();
    here.lighter(&format!("migrate debian {} --downtime 10s", there.address())).ok();
    guest.shut_down(there);
}
