//! The schemas of all JSON in `docs/schema`, made from the types.
//!
//! After a change of a type, `UPDATE_SCHEMAS=1 cargo test -p avhdx-cli schemas` writes them anew.
#![allow(clippy::disallowed_methods)] // the test reads and writes the schemas

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::vocabulary::{Answer, Document, Line};

/// The schema of `Whole`, which is `T` with what all answers have.
fn schema<Whole: JsonSchema, T: Answer + JsonSchema>() -> (String, Value) {
    let generator = || SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = generator().into_root_schema_for::<Whole>().to_value();
    let part = generator().into_root_schema_for::<T>().to_value();
    schema["title"] = T::SCHEMA.into();
    schema["description"] = part["description"].clone();
    schema["properties"]["schema"] = json!({ "const": T::SCHEMA });
    let (name, _) = T::SCHEMA.trim_start_matches("avhdx.").split_once('/').unwrap();
    (format!("{name}.json"), schema)
}

fn document<T: Answer + JsonSchema + 'static>() -> (String, Value) {
    schema::<Document<'static, T>, T>()
}

fn line<T: Answer + JsonSchema + 'static>() -> (String, Value) {
    schema::<Line<'static, T>, T>()
}

#[test]
fn the_schemas_are_those_of_the_types() {
    let schemas = BTreeMap::from([
        document::<crate::bench::BenchAnswer>(),
        line::<crate::cat::CatAnswer>(),
        document::<crate::check::CheckAnswer>(),
        document::<crate::checkpoint::CheckpointAnswer>(),
        document::<crate::compact::CompactAnswer>(),
        document::<crate::compare::CompareAnswer>(),
        document::<crate::pages::CompletionsAnswer>(),
        document::<crate::convert::ConvertAnswer>(),
        document::<crate::convert::chain::ConvertChainAnswer>(),
        document::<crate::cp::CpAnswer>(),
        document::<crate::df::DfAnswer>(),
        document::<crate::versions::VersionsAnswer>(),
        document::<crate::create::CreateAnswer>(),
        document::<crate::merging::DeleteAnswer>(),
        line::<crate::diff::DiffAnswer>(),
        line::<crate::diff::files::DiffFileAnswer>(),
        line::<crate::diff::files::DiffFilesTotalAnswer>(),
        line::<crate::diff::DiffTotalAnswer>(),
        document::<crate::discard::DiscardAnswer>(),
        line::<crate::render::ErrorAnswer>(),
        document::<crate::explain::ExplainAnswer>(),
        document::<crate::flatten::FlattenAnswer>(),
        document::<crate::operation::ForecastAnswer>(),
        document::<crate::facts::json::InfoAnswer>(),
        document::<crate::info::vhd::VhdInfoAnswer>(),
        document::<crate::info::qcow2::Qcow2InfoAnswer>(),
        document::<crate::info::vmdk::VmdkInfoAnswer>(),
        document::<crate::pages::ManAnswer>(),
        document::<crate::label::LabelAnswer>(),
        line::<crate::ls::LsAnswer>(),
        line::<crate::map::MapAnswer<'_>>(),
        document::<crate::measure::MeasureAnswer>(),
        document::<crate::rescue::RescueAnswer>(),
        document::<crate::merging::MergeAnswer>(),
        document::<crate::metadata::MetadataAnswer>(),
        document::<crate::metadata::MetadataItemAnswer>(),
        line::<crate::output::NoteAnswer<'_>>(),
        document::<crate::snapshots::PointsAnswer>(),
        line::<crate::progress::ProgressAnswer>(),
        line::<crate::read::ReadAnswer>(),
        document::<crate::rebase::RebaseAnswer>(),
        document::<crate::relink::RelinkAnswer>(),
        document::<crate::repair::RepairAnswer>(),
        document::<crate::repair::UndoAnswer>(),
        document::<crate::reparent::ReparentAnswer>(),
        document::<crate::resize::ResizeAnswer>(),
        document::<crate::revert::RevertAnswer>(),
        document::<crate::seal::SealAnswer>(),
        document::<crate::tree::json::TreeAnswer>(),
        document::<crate::verify::VerifyAnswer>(),
        line::<crate::output::WarningAnswer<'_>>(),
        document::<crate::ls::VolumesAnswer>(),
        document::<crate::write::WriteAnswer>(),
        document::<crate::zero::ZeroAnswer>(),
    ]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema");
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (name, schema) in &schemas {
            fs::write(folder.join(name), format!("{schema:#}\n")).unwrap();
        }
    }
    let there = fs::read_dir(&folder).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_slice(&fs::read(&path).unwrap()).unwrap())
    });
    let there: BTreeMap<String, Value> = there.collect();
    for (name, schema) in &schemas {
        assert!(there.get(name) == Some(schema), "docs/schema/{name} is not that of the type");
    }
    assert!(there.keys().eq(schemas.keys()), "docs/schema has files of no type");
}
