//! The documentation.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Result, workspace};

/// Builds the book if mdBook is installed, and the API pages.
pub(crate) fn run(out: &Path) -> Result {
    let out = workspace::root().join(out);
    if has_mdbook() {
        book(&out)?;
        println!("{}", out.join("index.html").display());
    } else {
        eprintln!("the book is left out, because mdBook is not installed (`cargo install mdbook --locked`)");
    }
    let mut command = workspace::cargo();
    command.args(["doc", "--workspace", "--no-deps", "--features", "wgpu"]);
    workspace::run(command.env("RUSTDOCFLAGS", "-D warnings"))?;
    println!("{}", workspace::target().join("doc/breakers_model/index.html").display());
    Ok(())
}

/// Builds the book into a folder.
///
/// # Errors
/// If mdBook is not installed, or fails.
pub(crate) fn book(out: &Path) -> Result {
    if !has_mdbook() {
        return Err("the book needs mdBook: `cargo install mdbook --locked`".into());
    }
    let docs = workspace::root().join("docs");
    workspace::run(Command::new("mdbook").arg("build").arg(docs).arg("--dest-dir").arg(out))
}

fn has_mdbook() -> bool {
    let mut version = Command::new("mdbook");
    version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}
