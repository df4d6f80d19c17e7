//! A guest with cloud-init, which sets it up by the documents of its seed (docs/adr/0033-seeds.md).

use crate::fixtures::{Lab, StockGuest, holds, until};

/// Where the first host has the documents; no other host has them.
const FOLDER: &str = "/var/tmp/seed";

/// What the guest is asked to do: it stays reachable in the way that the lab needs.
const USER_DATA: &str = "#cloud-config
disable_root: false
ssh_deletekeys: false
write_files:
- {path: /root/seeded, content: by the seed}";

/// The password for the image's ordinary user.
const PASSWORD: &str = "three dogs, 1 cat";

/// Says `accepted` if the user's hash in `/etc/shadow` is that of the password, and not locked.
const TRY_PASSWORD: &str = "$hash = (split /:/, qx(getent shadow debian))[1];
    print crypt($ARGV[0], $hash) eq $hash ? \"accepted\" : \"no: $hash\"";

#[test]
fn cloud_init_sets_a_guest_up_and_its_seed_migrates_with_it() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    here.sh(&format!(
        "set -e; rm -rf {FOLDER}; mkdir -p {FOLDER}; cd {FOLDER}; echo '{USER_DATA}' > user-data
         echo 'config: disabled' > network; echo '{PASSWORD}' > password; ssh-keygen -q -t ed25519 -N '' -f key"
    ))
    .ok();
    let key = here.sh(&format!("cat {FOLDER}/key.pub")).ok();
    let seed = format!("--seed {FOLDER}/user-data,network-config={FOLDER}/network");
    let options = format!(
        "{seed} --ssh-key {FOLDER}/key.pub --password-file {FOLDER}/password --hostname shop"
    );
    let guest = StockGuest::boot(&lab, here, 1, &options);
    until("cloud-init has set it up", || {
        let done = guest.sh(here, "cat /root/seeded && cat /home/debian/.ssh/authorized_keys");
        let is_set_up = done.code == Some(0)
            && done.stdout.starts_with("by the seed")
            && done.stdout.contains(key.trim());
        if is_set_up { Ok(()) } else { Err((done, guest.console(here))) }
    });
    until("the user has the password", || {
        let tried = guest.sh(here, &format!("perl -e '{TRY_PASSWORD}' '{PASSWORD}'"));
        holds(tried.stdout == "accepted", (tried, guest.console(here)))
    });
    // The lab changes the running host name later.
    assert_eq!(guest.sh(here, "cat /etc/hostname").ok().trim(), "shop");

    here.sh(&format!("rm -r {FOLDER}")).ok();
    here.lighter(&format!("migrate debian {} --downtime 10s", there.address())).ok();
    let read = "echo 3 > /proc/sys/vm/drop_caches
        mount -o ro LABEL=CIDATA /mnt && cat /mnt/user-data";
    assert_eq!(guest.sh(there, read).ok().trim(), USER_DATA);
    guest.shut_down(there);
}
