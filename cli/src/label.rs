//! `avhdx label`: gives a point in time another label.

use std::ffi::OsString;

use avhdx::ops::Label;
use serde::Serialize;

use crate::args::OperationFlags;
use crate::failure::{Exit, Failure, Reply};
use crate::operation::Subject;
use crate::output::Console;
use crate::values;
use crate::vocabulary::{Answer, ImageRef};

/// Give a point in time a label, another one, or none.
///
/// The label is stored in the layer above the point. Only a metadata item of avhdx changes there: the disk and the
/// identity of the image stay, and its children still accept it.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The tip, with the point in time: IMAGE@-1, IMAGE@LABEL, IMAGE@NAME, IMAGE@GUIDPREFIX.
    #[arg(value_name = "IMAGE@SEL")]
    image: OsString,
    /// The label, up to 4096 bytes; '' removes it.
    #[arg(value_name = "TEXT", value_parser = values::any_label)]
    text: String,
    /// Write to a layer below the tip. Needed for all points but the newest.
    #[arg(long)]
    write_frozen: bool,
    #[command(flatten)]
    opening: OperationFlags,
}

/// A label that was set or removed.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct LabelAnswer {
    /// Null if it was removed.
    label: Option<String>,
    /// The point in time.
    point: ImageRef,
}

impl Answer for LabelAnswer {
    const SCHEMA: &'static str = "avhdx.label/1";
}

pub(crate) fn run(args: Args, console: &mut Console) -> Result<Reply, Failure> {
    let options = args.opening.options()?;
    let inspected = Subject::inspect(&args.image, &options)?;
    let point = inspected.required_point()?;
    if point.id == inspected.tip().id {
        // Refused, and no log is replayed for it.
        Label::new(point.id, &args.text).run(&inspected.chain)?;
    }
    // A label that will be refused must not replay a log.
    let is_newest = inspected.is_newest(point.id);
    let id = point.data_write_guid;
    if point.id != inspected.tip().id && !is_newest && !args.write_frozen {
        let message = format!(
            "{}: the label is stored in {}, a layer below the tip",
            args.image.to_string_lossy(),
            inspected.above(id)?.name
        );
        let failure = Failure::new(Exit::Refused, "label.frozen", message);
        return Err(failure);
    }
    drop(inspected);
    let subject = Subject::open(&args.image, &options, console)?;
    let point = subject.layer(console)?.clone();
    Label::new(point.id, &args.text).write_frozen(args.write_frozen).run(&subject.chain)?;
    subject.close()?;
    console.done();
    let label = Some(args.text).filter(|text| !text.is_empty());
    if console.is_json() {
        console.document(&LabelAnswer { label, point: ImageRef::from(&point) })?;
    } else {
        let label = label.map_or("no label".to_owned(), |label| format!("label {label}"));
        console.line(format!("{}: {label}", point.name))?;
    }
    Ok(Reply::Yes)
}
