//! A guest, reached through its process's API wherever it is.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::api::{Answer, ask};
use super::process::Pid;
use super::program::{in_namespace, lighter, run};
use super::{Host, wait};

/// How a guest is started. The default is small and calm, so that many fit on a small machine.
#[derive(Debug, Clone)]
pub struct GuestPlan {
    /// Its name.
    pub name: String,
    /// Its memory, as for `--memory`.
    pub memory: String,
    /// Its vCPUs.
    pub cpus: u8,
    /// Pages that the workload writes each second.
    pub dirty_rate: u32,
    /// The part of memory that it writes to, as for `--working-set`.
    pub working_set: String,
    /// More of `lighter run`'s options.
    pub options: Vec<String>,
    /// Environment of its process.
    pub environment: Vec<(String, String)>,
    /// Network namespace of its process; absent: this one.
    pub namespace: Option<String>,
}

impl Default for GuestPlan {
    fn default() -> Self {
        Self {
            name: "web-1".to_owned(),
            memory: "64M".to_owned(),
            cpus: 1,
            dirty_rate: 500,
            working_set: "8M".to_owned(),
            options: Vec::new(),
            environment: Vec::new(),
            namespace: None,
        }
    }
}

/// A guest on a host, whether or not it is there (any more).
#[derive(Debug, Clone)]
pub struct Guest {
    state_dir: PathBuf,
    name: String,
}

impl Guest {
    /// Starts the built-in workload on `host` and waits until it works.
    pub fn start(host: &Host, plan: &GuestPlan) -> Self {
        let (cpus, rate) = (plan.cpus.to_string(), plan.dirty_rate.to_string());
        let mut arguments = vec![
            "run",
            "--detach",
            "--name",
            &plan.name,
            "--memory",
            &plan.memory,
            "--cpus",
            &cpus,
            "--dirty-rate",
            &rate,
            "--working-set",
            &plan.working_set,
        ];
        arguments.extend(plan.options.iter().map(String::as_str));
        let mut command =
            in_namespace(lighter(host.state_dir(), &arguments), plan.namespace.as_deref());
        command.envs(plan.environment.iter().cloned());
        run(command).ok();
        let guest = Self::at(host.state_dir(), &plan.name);
        guest.await_workload("it works", |workload| workload["phase"] == "working");
        guest
    }

    /// The guest of this name on the host with this state folder.
    pub fn at(state_dir: &Path, name: &str) -> Self {
        Self { state_dir: state_dir.to_owned(), name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process's socket.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("guests").join(&self.name).join("api.sock")
    }

    /// GET.
    ///
    /// # Errors
    /// What the process refused with, or that nobody answers.
    pub fn get(&self, path: &str) -> Result<Value, String> {
        ask(&self.socket(), "GET", path, None).map_err(|error| error.to_string())?.success()
    }

    /// A request that is answered.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        ask(&self.socket(), method, path, body)
            .unwrap_or_else(|error| panic!("{}: {method} {path}: {error}", self.name))
    }

    /// How it stands, as it says; absent when nobody answers.
    pub fn state(&self) -> Option<String> {
        Some(self.get("/v1/guest").ok()?["state"].as_str()?.to_owned())
    }

    /// Its process.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        let info = self.get("/v1/guest").unwrap_or_else(|error| panic!("{}: {error}", self.name));
        Pid(info["pid"].as_u64().expect("a pid") as u32)
    }

    /// What its workload says.
    ///
    /// # Errors
    /// It has none, or nobody answers.
    pub fn workload(&self) -> Result<Value, String> {
        self.get("/v1/guest/workload")
    }

    /// Turns of its loop: grow exactly while its vCPUs run.
    pub fn ticks(&self) -> Option<u64> {
        self.workload().ok()?["ticks"].as_u64()
    }

    /// Waits for something in the workload's report.
    #[track_caller]
    pub fn await_workload(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        wait::until(&format!("the workload of {}: {what}", self.name), || {
            let workload = self.workload()?;
            if condition(&workload) { Ok(workload) } else { Err(workload.to_string()) }
        })
    }

    /// Waits until it stands as `state`.
    #[track_caller]
    pub fn await_state(&self, state: &str) {
        wait::until(&format!("{} is {state}", self.name), || {
            let seen = self.state();
            wait::holds(seen.as_deref() == Some(state), seen)
        });
    }

    /// Has it check all its memory, to the last bit, and returns what it says then.
    #[track_caller]
    pub fn verify(&self) -> Value {
        let asked = self.request("PUT", "/v1/guest/workload", Some(&json!({ "verify": true })));
        let epoch = asked.success().expect("the workload can be steered")["verified_epoch"]
            .as_u64()
            .expect("an epoch");
        self.await_workload("all memory is checked", |workload| {
            workload["verified_epoch"].as_u64() >= Some(epoch)
        })
    }
}
