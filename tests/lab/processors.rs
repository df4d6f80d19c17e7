//! Migration between hosts with different processors.

use crate::fixtures::{Lab, StockGuest};

/// The default processor of the lab without some of its features.
const LESSER: &str = "EPYC-Rome,+svm,+npt,+nrip-save,-avx2,-bmi2,-movbe";

#[test]
fn a_host_that_lacks_features_is_refused_by_name_and_a_model_goes_through() {
    let lab = Lab::of_processors(&[None, Some(LESSER)]);
    let [here, there] = lab.nodes();
    here.lighter("run --detach --name w1 --memory 64M").ok();
    let words = ["avx2", "bmi2", "movbe", "w1"];
    here.lighter(&format!("migrate w1 {}", there.address())).complains(&words);
    assert_eq!(here.state_of("w1").as_deref(), Some("running"));
    assert!(there.guests().is_empty());
    here.lighter("destroy w1").ok();

    let guest = StockGuest::boot(&lab, here, 1, "");
    let flags = |host| guest.sh(host, "grep -m 1 ^flags /proc/cpuinfo").ok();
    let before = flags(here);
    for feature in ["avx", "avx2", "bmi1", "bmi2", "movbe", "fma", "xsave", "svm"] {
        assert!(!before.split_whitespace().any(|flag| flag == feature), "{feature}: {before}");
    }
    here.lighter(&format!("migrate debian {} --downtime 10s", there.address())).ok();
    assert_eq!(flags(there), before);
    guest.shut_down(there);
}
