//! A guest, reached through the API of its process on whichever host it is.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::api::{Answer, ask};
use super::process::Pid;
use super::program::{in_namespace, lighter, run};
use super::{Host, wait};

/// How to start a guest. The default is small and writes little, so that many fit on a small
/// machine.
#[derive(Debug, Clone)]
pub struct GuestPlan {
    /// Name of the guest.
    pub name: String,
    /// Size of the guest's memory, as for `--memory`.
    pub memory: String,
    /// Number of vCPUs.
    pub cpus: u8,
    /// Pages that the workload writes per second.
    pub dirty_rate: u32,
    /// The part of memory that the workload writes to, as for `--working-set`.
    pub working_set: String,
    /// More options of `lighter run`.
    pub options: Vec<String>,
    /// Environment variables of the guest's process.
    pub environment: Vec<(String, String)>,
    /// Network namespace of the guest's process; `None` for that of the test.
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

/// A guest on a host, whether or not it exists there (yet, or any more).
#[derive(Debug, Clone)]
pub struct Guest {
    state_dir: PathBuf,
    name: String,
}

impl Guest {
    /// Starts the built-in workload on `host` and waits until it writes.
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

    /// The guest `name` on the host with this state folder.
    pub fn at(state_dir: &Path, name: &str) -> Self {
        Self { state_dir: state_dir.to_owned(), name: name.to_owned() }
    }

    /// The guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The API socket of the guest's process.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("guests").join(&self.name).join("api.sock")
    }

    /// Sends a GET request and returns the document.
    ///
    /// # Errors
    /// If the process refuses the request or does not answer.
    pub fn get(&self, path: &str) -> Result<Value, String> {
        ask(&self.socket(), "GET", path, None).map_err(|error| error.to_string())?.success()
    }

    /// Sends a request, which must be answered, though not necessarily with success.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        ask(&self.socket(), method, path, body)
            .unwrap_or_else(|error| panic!("{}: {method} {path}: {error}", self.name))
    }

    /// The guest's state according to its process; `None` if no process answers.
    pub fn state(&self) -> Option<String> {
        Some(self.get("/v1/guest").ok()?["state"].as_str()?.to_owned())
    }

    /// The guest's process.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        let info = self.get("/v1/guest").unwrap_or_else(|error| panic!("{}: {error}", self.name));
        Pid(info["pid"].as_u64().expect("a pid") as u32)
    }

    /// The report of the guest's workload.
    ///
    /// # Errors
    /// If the guest has no workload, or no process answers.
    pub fn workload(&self) -> Result<Value, String> {
        self.get("/v1/guest/workload")
    }

    /// Iterations of the workload's loop, which grow exactly while the guest's vCPUs run.
    pub fn ticks(&self) -> Option<u64> {
        self.workload().ok()?["ticks"].as_u64()
    }

    /// Waits until `condition` holds for the workload's report, and returns that report.
    #[track_caller]
    pub fn await_workload(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        wait::until(&format!("the workload of {}: {what}", self.name), || {
            let workload = self.workload()?;
            if condition(&workload) { Ok(workload) } else { Err(workload.to_string()) }
        })
    }

    /// Waits until the guest is in `state`.
    #[track_caller]
    pub fn await_state(&self, state: &str) {
        wait::until(&format!("{} is {state}", self.name), || {
            let seen = self.state();
            wait::holds(seen.as_deref() == Some(state), seen)
        });
    }

    /// Waits until everything that the guest needs has arrived, and only its source's decision is
    /// missing.
    #[track_caller]
    pub fn await_received(&self) {
        wait::until(&format!("{} is all there", self.name), || {
            let status = self.get("/v1/guest/migration")?;
            wait::holds(status["progress"]["phase"] == "ready", status)
        });
    }

    /// Waits until the host to which the guest was handed over is out of reach.
    #[track_caller]
    pub fn await_out_of_reach(&self) {
        wait::until(&format!("{} does not reach the other host", self.name), || {
            let info = self.get("/v1/guest")?;
            wait::holds(info["detail"].is_string(), info)
        });
    }

    /// Has the guest check all its memory, to the last bit, and returns its report afterwards.
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
