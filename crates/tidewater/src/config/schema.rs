//! The JSON schema of `tidewater.yaml`, for editors. `docs/reference/tidewater.schema.json` is its copy.

use super::Config;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use std::borrow::Cow;

/// `on` and `off`, which an editor with YAML 1.2 takes for text.
pub(super) struct Switch;

impl JsonSchema for Switch {
    fn schema_name() -> Cow<'static, str> {
        "Switch".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": [true, false, "on", "off"] })
    }
}

/// The schema as indented JSON with a line end.
pub fn json_schema() -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(&schemars::schema_for!(Config)).map(|schema| schema + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_for_editors_is_current() {
        let copy = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/tidewater.schema.json");
        let copy = std::fs::read_to_string(copy).unwrap();
        assert!(
            copy == json_schema().unwrap(),
            "run `tidewater config schema > docs/reference/tidewater.schema.json`"
        );
    }
}
