//! The documentation.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Result, workspace};

pub(crate) fn run(out: &Path) -> Result {
    let root = workspace::root();
    let out = root.join(out);
    let has_mdbook =
        Command::new("mdbook").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if has_mdbook {
        workspace::run(
            Command::new("mdbook").arg("build").arg(root.join("docs")).arg("--dest-dir").arg(&out),
        )?;
        println!("{}", out.join("index.html").display());
    } else {
        eprintln!(
            "mdBook is not installed (`cargo install mdbook`); the pages in docs/ read well as they are"
        );
    }
    let mut command = workspace::cargo();
    command.args(["doc", "--workspace", "--no-deps", "--features", "wgpu"]);
    workspace::run(command.env("RUSTDOCFLAGS", "-D warnings"))?;
    println!("{}", workspace::target().join("doc/breakers_model/index.html").display());
    Ok(())
}
