//! Checks the ksmd tuning rules of other systems, which the density benchmark applies, against the
//! behaviour that their documentation states.

#[path = "../benches/density/laws.rs"]
mod laws;

use laws::{KSMTUNED, MOM, Order, Seen, Tuner};

const FULL: Seen = Seen { committed: 1.0, free: 0.05 };
const EASED: Seen = Seen { committed: 1.0, free: 0.30 };
const IDLE: Seen = Seen { committed: 0.5, free: 0.50 };

#[test]
fn ksmd_works_harder_from_sample_to_sample_while_too_little_is_free() {
    let mut tuner = Tuner::new(KSMTUNED);
    let pages: Vec<Order> = (0..6).map(|_| tuner.sample(FULL)).collect();
    let expected = [300, 600, 900, 1200, 1250, 1250].map(|pages| Order::Run { pages });
    assert_eq!(pages, expected);
}

#[test]
fn ksmd_works_less_when_enough_is_free_and_never_less_than_64_pages() {
    let mut tuner = Tuner::new(KSMTUNED);
    tuner.sample(FULL);
    let pages: Vec<Order> = (0..6).map(|_| tuner.sample(EASED)).collect();
    let expected = [250, 200, 150, 100, 64, 64].map(|pages| Order::Run { pages });
    assert_eq!(pages, expected);
}

#[test]
fn ksmd_stops_only_when_little_is_committed_and_much_is_free() {
    let mut tuner = Tuner::new(KSMTUNED);
    assert_eq!(tuner.sample(IDLE), Order::Stop);
    assert_ne!(tuner.sample(Seen { committed: 0.9, ..IDLE }), Order::Stop);
    assert_ne!(tuner.sample(Seen { free: 0.1, ..IDLE }), Order::Stop);
}

#[test]
fn mom_begins_with_what_the_kernel_has_and_averages_what_is_free() {
    let mut tuner = Tuner::new(MOM);
    assert_eq!(tuner.sample(FULL), Order::Run { pages: 400 });
    // 0.05 and 0.30: still less than 20 % on average.
    assert_eq!(tuner.sample(EASED), Order::Run { pages: 700 });
    assert_eq!(tuner.sample(EASED), Order::Run { pages: 650 });
}

#[test]
fn larger_hosts_sleep_less_but_ksmtuned_never_less_than_10_ms() {
    let sleep_ms = |law: laws::Rules| [4.0, 16.0, 24.0, 64.0].map(|gib| law.sleep_ms(gib));
    assert_eq!(sleep_ms(MOM), [40, 10, 6, 2]);
    assert_eq!(sleep_ms(KSMTUNED), [40, 10, 10, 10]);
}
