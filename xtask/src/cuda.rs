//! A CUDA build on a machine that can reach only a package registry.
//!
//! CubeCL compiles kernels for NVIDIA with LLVM. The build script of `tracel-llvm-bundler` downloads an LLVM
//! of its own into the user's data folder, and does nothing if a marker file is there already. Debian carries
//! an LLVM that is close enough, so [`setup`] lays out Debian's files as the bundle's would be, with an
//! `llvm-config` that answers for them:
//!
//! - `include/`: the headers; the lists of targets, which the bindings expand into calls, name only
//!   those that are linked;
//! - `lib/`: the static libraries of LLVM and of what it needs, so that the program needs only the C library;
//! - `bin/llvm-config`: Debian's, with the paths of this layout and without libraries that nothing calls.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, programs, workspace};

/// The crate whose build script looks for LLVM.
const BUNDLER: &str = "tracel-llvm-bundler";
/// The newest LLVM that Debian carries, one major version behind the bundle's; its C interface suffices.
const LLVM_MAJOR: u32 = 22;
const DEBIAN_PACKAGES: &str = "llvm-22-dev libzstd-dev zlib1g-dev g++";
/// Targets to link: the host's, and NVIDIA's.
const TARGETS: [&str; 2] = ["X86", "NVPTX"];
/// Parts of LLVM that the code generator calls.
const COMPONENTS: &str = "nvptx x86 orcjit mcjit passes linker bitreader bitwriter irreader analysis target";
/// The marker that tells the bundler to do nothing.
const MARKER: &str = ".tracel-llvm-installed";
/// CUDA 13.0, in the numbering of cudarc, whose build script would otherwise ask the toolkit.
const CUDA_VERSION: &str = "13000";

/// Lays out Debian's LLVM as the bundle, and returns the folder.
pub(crate) fn setup() -> Result<PathBuf> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err("this is for Debian on x86_64; elsewhere the build downloads its LLVM itself".into());
    }
    let system = PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}"));
    if !system.join("bin/llvm-config").exists() {
        let install = format!("apt-get install -y --no-install-recommends {DEBIAN_PACKAGES}");
        return Err(format!("{} is missing: {install}", system.display()).into());
    }
    let folder = bundle_folder()?;
    // Built beside its final place: an interrupted run leaves nothing that looks complete.
    let staging = folder.with_extension("new");
    remove(&staging)?;
    lay_out(&system, &staging, &folder)?;
    remove(&folder)?;
    std::fs::rename(&staging, &folder)?;
    Ok(folder)
}

/// Builds the examples with the feature `cuda`, and gathers them.
pub(crate) fn build(small: bool, tests: bool) -> Result {
    if !bundle_folder()?.join(MARKER).exists() {
        match setup() {
            Ok(folder) => eprintln!("LLVM laid out in {}", folder.display()),
            Err(reason) => eprintln!("{reason}\nletting the build download its LLVM"),
        }
    }
    let build = |arguments: &[&str]| {
        let mut command = workspace::cargo();
        command.args(arguments);
        command.args(["--release", "--features", "cuda", "--message-format", "json-render-diagnostics"]);
        command.env("CUDARC_CUDA_VERSION", CUDA_VERSION);
        if small {
            let flags =
                ["-Clink-arg=-Wl,--icf=all", "-Clink-arg=-Wl,-z,pack-relative-relocs", "-Cstrip=symbols"];
            command.env("RUSTFLAGS", flags.join(" "));
        }
        workspace::output(&mut command)
    };
    let mut messages = build(&["build", "--workspace", "--examples"])?;
    if tests {
        messages += &build(&["test", "--workspace", "--lib", "--tests", "--no-run"])?;
    }
    for (_, path) in programs::gather(&messages, "cuda")? {
        let megabytes = std::fs::metadata(&path)?.len() as f64 / 1e6;
        println!("{} ({megabytes:.0} MB)", path.display());
    }
    Ok(())
}

/// The folder in which the bundler of the version in `Cargo.lock` looks.
fn bundle_folder() -> Result<PathBuf> {
    let packages = workspace::packages()?;
    let bundler = packages.iter().find(|p| p.name == BUNDLER);
    let bundler = bundler.ok_or_else(|| format!("{BUNDLER} is no dependency (any more)"))?;
    let version = bundler.manifest["version"].as_str().ok_or("a package without version")?;
    let data = match std::env::var_os("XDG_DATA_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(&std::env::var_os("HOME").ok_or("HOME is not set")?).join(".local/share"),
    };
    Ok(data.join("tracel").join(format!("tracel-llvm-{version}")))
}

/// Fills `staging` with the content of `folder`.
fn lay_out(system: &Path, staging: &Path, folder: &Path) -> Result {
    let [bin, lib, include] = ["bin", "lib", "include"].map(|part| staging.join(part));
    for part in [&bin, &lib, &include.join("llvm/Config")] {
        std::fs::create_dir_all(part)?;
    }

    link(&system.join("include/llvm-c"), &include.join("llvm-c"))?;
    for header in entries(&system.join("include/llvm"))? {
        if name(&header) != "Config" {
            link(&header, &include.join("llvm").join(name(&header)))?;
        }
    }
    for file in entries(&system.join("include/llvm/Config"))? {
        let mut content = std::fs::read_to_string(&file)?;
        if file.extension().is_some_and(|e| e == "def") {
            content = keep_targets(&content);
        }
        std::fs::write(include.join("llvm/Config").join(name(&file)), content)?;
    }

    for archive in entries(&system.join("lib"))? {
        let name = name(&archive);
        if name.starts_with("libLLVM") && name.ends_with(".a") {
            link(&archive, &lib.join(name))?;
        }
    }
    for library in ["stdc++", "zstd", "z"] {
        let file = format!("lib{library}.a");
        let found = workspace::output(Command::new("g++").arg(format!("-print-file-name={file}")))?;
        let found = PathBuf::from(found.trim());
        // For a file that it does not find, the compiler prints the bare name.
        if !found.is_absolute() {
            return Err(format!("{file} is missing: apt-get install {DEBIAN_PACKAGES}").into());
        }
        link(&found, &lib.join(file))?;
    }

    let script = bin.join("llvm-config");
    std::fs::write(&script, llvm_config(system, folder))?;
    make_executable(&script)?;
    std::fs::write(staging.join(MARKER), "")?;
    Ok(())
}

/// Removes from a list of targets, one `LLVM_TARGET(Name)` a line, those that are not linked.
fn keep_targets(list: &str) -> String {
    let is_kept = |line: &&str| match line.strip_prefix("LLVM_").and_then(|rest| rest.split_once('(')) {
        Some((kind, rest)) if kind.chars().all(|c| c.is_ascii_uppercase() || c == '_') => {
            TARGETS.iter().any(|target| rest.strip_prefix(target).is_some_and(|r| r.starts_with(')')))
        }
        _ => true,
    };
    list.split_inclusive('\n').filter(is_kept).collect()
}

/// A shell script that answers as the `llvm-config` of the bundle would.
fn llvm_config(system: &Path, folder: &Path) -> String {
    let (system, folder) = (system.display(), folder.display());
    format!(
        r#"#!/bin/sh
# Written by `cargo xtask cuda-setup`: Debian's LLVM in the layout of the bundle.
real='{system}/bin/llvm-config'
if [ "$1" = --link-static ]; then shift; fi
case "$1" in
--libdir) echo '{folder}/lib' ;;
--includedir) echo '{folder}/include' ;;
--cflags | --cxxflags) "$real" "$1" | sed 's|{system}/include|{folder}/include|g' ;;
--libs | --libnames) exec "$real" --link-static "$1" {COMPONENTS} ;;
# Debian also names libz3 and libxml2, which the components above do not call.
--system-libs) echo '-lrt -ldl -lm -lz -lzstd' ;;
*) exec "$real" --link-static "$@" ;;
esac
"#
    )
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = std::fs::read_dir(folder).map_err(|e| format!("cannot read {}: {e}", folder.display()))?;
    let mut paths = read.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn remove(folder: &Path) -> Result {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn link(target: &Path, link: &Path) -> Result {
    Ok(std::os::unix::fs::symlink(target, link)?)
}

#[cfg(unix)]
fn make_executable(file: &Path) -> Result {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> Result {
    Err("needs symbolic links".into())
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result {
    Err("needs a Unix".into())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_linked_targets_stay() {
        let list = "/* LLVM_TARGET(Any) */\n#ifndef LLVM_TARGET\nLLVM_TARGET(AArch64)\nLLVM_TARGET(NVPTX)\n\
                    LLVM_ASM_PARSER(X86)\nLLVM_ASM_PARSER(X86Other)\n#undef LLVM_TARGET\n";
        let expected = "/* LLVM_TARGET(Any) */\n#ifndef LLVM_TARGET\nLLVM_TARGET(NVPTX)\n\
                        LLVM_ASM_PARSER(X86)\n#undef LLVM_TARGET\n";
        assert_eq!(keep_targets(list), expected);
    }

    /// The layout from a small imitation of Debian's folder, and a run of the script in it.
    #[test]
    fn the_layout_answers() {
        let folder = tempfile::tempdir().unwrap();
        let (system, out) = (folder.path().join("system"), folder.path().join("out"));
        let files = [
            ("bin/llvm-config", "#!/bin/sh\necho \"real $*\" -I$(dirname $0 | sed s,/bin,/include,)\n"),
            ("include/llvm-c/Core.h", "core"),
            ("include/llvm/IR.h", "ir"),
            ("include/llvm/Config/Targets.def", "LLVM_TARGET(ARM)\nLLVM_TARGET(X86)\n"),
            ("include/llvm/Config/config.h", "config"),
            ("lib/libLLVMCore.a", "archive"),
            ("lib/libclang.so", "other"),
        ];
        for (path, content) in files {
            let path = system.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
        }
        make_executable(&system.join("bin/llvm-config")).unwrap();
        match lay_out(&system, &out, &out) {
            Ok(()) => {}
            // Without g++ and its static libraries the rest cannot be tried; a build needs them anyway.
            Err(error) if error.to_string().contains("missing") || error.to_string().contains("g++") => {
                return;
            }
            Err(error) => panic!("{error}"),
        }
        let read = |path: &str| std::fs::read_to_string(out.join(path)).unwrap();
        assert_eq!(read("include/llvm-c/Core.h"), "core");
        assert_eq!(read("include/llvm/IR.h"), "ir");
        assert_eq!(read("include/llvm/Config/Targets.def"), "LLVM_TARGET(X86)\n");
        assert_eq!(read("include/llvm/Config/config.h"), "config");
        assert_eq!(read("lib/libLLVMCore.a"), "archive");
        assert!(!out.join("lib/libclang.so").exists());
        assert!(out.join(MARKER).exists());

        let ask = |argument: &str| {
            let mut command = Command::new(out.join("bin/llvm-config"));
            workspace::output(command.args(["--link-static", argument])).unwrap().trim().to_owned()
        };
        assert_eq!(ask("--libdir"), out.join("lib").display().to_string());
        assert_eq!(ask("--includedir"), out.join("include").display().to_string());
        assert!(ask("--cflags").contains(&format!("-I{}/include", out.display())));
        assert!(ask("--libs").starts_with(&format!("real --link-static --libs {COMPONENTS}")));
        assert!(ask("--version").starts_with("real --link-static --version"));
        assert!(!ask("--system-libs").contains("z3"));
    }
}
