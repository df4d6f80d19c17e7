//! Requests to the node's API about memory optimization. The answers are types of
//! `memopt::service`.

use memopt::history::RunId;
use memopt::plan::Plan;
use memopt::policy::Goal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The body of `POST /v1/density/plan`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PlanRequest {
    /// The goal; the policy's goal when absent.
    pub(crate) goal: Option<Goal>,
    /// The text of a policy; the node's when absent.
    pub(crate) policy: Option<String>,
    /// Whether to survey guests' pages first where there is no recent survey, which takes some
    /// time.
    pub(crate) survey: bool,
}

/// The largest plan that the node accepts, in bytes of JSON.
pub(crate) const PLAN_BYTES_MAX: usize = 4 << 20;

/// The body of `POST /v1/density/runs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RunRequest {
    /// The goal; the policy's goal when absent.
    pub(crate) goal: Option<Goal>,
    /// The run takes only steps of this plan; without one, any that the policy allows.
    pub(crate) plan: Option<Plan>,
}

/// The answer to `POST /v1/density/runs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct RunStarted {
    /// ID of the run, for `GET /v1/density/runs/ID`.
    pub(crate) run: RunId,
}
