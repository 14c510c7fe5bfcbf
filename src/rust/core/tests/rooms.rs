//! The rooms of the house: each module of the crate imports only from those above it in the list of `lib.rs`.

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms as `lib.rs` lists them in its documentation.
fn rooms(lib: &str) -> Vec<&str> {
    let items = lib.lines().filter_map(|line| line.strip_prefix("//! - "));
    items
        .map(|item| item.split('`').nth(1).expect("a room has a name"))
        .collect()
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            out.push(path);
        }
    }
}

/// What a line names of this crate, comments aside: `task` of `use crate::task::Task;`.
fn named(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split("//").next().unwrap_or_default();
    code.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_'));
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[test]
fn a_room_imports_only_those_above_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
    let rooms = rooms(&lib);
    let declared = lib
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "))
        .map(|name| name.trim_end_matches(';'))
        .filter(|name| *name != "fuzzing");
    for module in declared {
        assert!(rooms.contains(&module), "lib.rs does not list {module}");
    }
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&src).unwrap();
        let room = inside.iter().next().unwrap().to_str().unwrap();
        let room = room.trim_end_matches(".rs");
        let Some(floor) = rooms.iter().position(|r| *r == room) else {
            assert!(["lib", "fuzzing"].contains(&room), "{room} is no room");
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        // Tests may use what they like.
        let code = text
            .lines()
            .take_while(|line| !line.contains("cfg(test)") && !line.contains("cfg(all(test"));
        if inside.ends_with("tests.rs") {
            continue;
        }
        for (number, line) in code.enumerate() {
            assert!(
                !line.contains("crate::{"),
                "{}:{}: one import a line",
                inside.display(),
                number + 1
            );
            for other in named(line) {
                if rooms
                    .iter()
                    .position(|r| *r == other)
                    .is_some_and(|above| above > floor)
                {
                    wrong.push(format!(
                        "{}:{}: {room} uses {other}",
                        inside.display(),
                        number + 1
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "imports from below:\n{}",
        wrong.join("\n")
    );
}
