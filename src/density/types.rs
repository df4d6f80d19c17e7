//! What is asked over the node's API about memory optimization; what it answers are
//! `memopt::service`'s types.

use memopt::history::RunId;
use memopt::plan::Plan;
use memopt::policy::Goal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `POST /v1/density/plan`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PlanRequest {
    /// What for; the policy's goal when absent.
    pub(crate) goal: Option<Goal>,
    /// The text of a policy; the node's when absent.
    pub(crate) policy: Option<String>,
    /// Whether guests' pages are surveyed first where there is no recent survey, which takes its
    /// time.
    pub(crate) survey: bool,
}

/// The largest plan that is taken, in bytes of JSON.
pub(crate) const PLAN_BYTES_MAX: usize = 4 << 20;

/// `POST /v1/density/runs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RunRequest {
    /// What for; the policy's goal when absent.
    pub(crate) goal: Option<Goal>,
    /// Nothing is done that is not in this plan.
    pub(crate) plan: Option<Plan>,
}

/// The answer to `POST /v1/density/runs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct RunStarted {
    /// The run, for `GET /v1/density/runs/ID`.
    pub(crate) run: RunId,
}
