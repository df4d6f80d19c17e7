//! What must be said before an operator's decision about a guest in doubt is carried out.

use super::types::{Resolution, ResolveRequest};
use super::{ApiError, Reason};

impl ResolveRequest {
    /// Returns the decision.
    ///
    /// # Errors
    /// The copy is to run, and the request does not say that the other host was asked: the guest's
    /// process cannot ask it.
    pub(crate) fn decided(&self) -> Result<Resolution, ApiError> {
        if self.decision == Resolution::Run && !self.other_host_has_none {
            let text = "ask the other host first whether it runs the guest, as `lighter migrate \
                        --resolve run` does; if it does not, send \"other_host_has_none\": true \
                        as well";
            return Err(ApiError::new(Reason::BadRequest, text));
        }
        Ok(self.decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_asked_the_other_host_lets_a_copy_run() {
        let decided = |text| serde_json::from_str::<ResolveRequest>(text).unwrap().decided();
        let refused = decided(r#"{"decision": "run"}"#).unwrap_err();
        assert_eq!(refused.reason, Reason::BadRequest);
        let asked = decided(r#"{"decision": "run", "other_host_has_none": true}"#);
        assert_eq!(asked.unwrap(), Resolution::Run);
        assert_eq!(decided(r#"{"decision": "discard"}"#).unwrap(), Resolution::Discard);
    }
}
