//! `docs/metrics.md` matches the catalogue.

use std::path::Path;

#[test]
fn reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let wanted = metrics::markdown();
    if std::env::var_os("LIGHTER_WRITE_DOCS").is_some() {
        std::fs::write(&path, &wanted).expect("docs/metrics.md can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/metrics.md differs from the catalogue; renew it with \
         LIGHTER_WRITE_DOCS=1 cargo test -p metrics --test reference"
    );
}
