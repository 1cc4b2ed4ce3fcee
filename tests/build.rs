//! Makes documentation tests of the Rust in the pages for readers.
//!
//! A page shows no more than a reader wants to see. What its blocks take for granted is put around them here. A block that needs files
//! or another device says `no_run`, a part of a program `ignore`.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// What a block may use without a word about it. The block has a scope of its own and may define the same again.
const BEFORE: &str = "
    use orkest::prelude::*;
    #[derive(Module)]
    struct Mlp { fc1: Linear, fc2: Linear, dropout: Dropout }
    impl Mlp {
        fn new() -> Self {
            Self { fc1: Linear::new(784, 128), fc2: Linear::new(128, 10), dropout: Dropout::new(0.2) }
        }
    }
    async fn page() -> Result<(), Box<dyn std::error::Error>> {
        let device = Device::cpu();
        let y = tensor![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
        let (embedded, lengths) = (Tensor::randn([3, 5, 64], &device), [2, 5, 1]);
        let (tokens, labels) = (Tensor::randint(0, 10000, [8, 6], &device), Tensor::randint(0, 2, [8], &device));
        let train_loader = DataLoader::new(TensorDataset::new((tokens, labels)));
        let model = Mlp::new();
        {
";

const AFTER: &str = "
        }
        Ok(())
    }
    pollster::block_on(page()).unwrap();
";

fn main() {
    let root = Path::new("..");
    let mut pages = vec![root.join("README.md"), root.join("tests/README.md")];
    let docs = fs::read_dir(root.join("docs")).expect("the pages lie beside this package");
    pages.extend(docs.map(|entry| entry.expect("a readable folder").path()).filter(|path| is_page(path)));
    pages.sort();

    println!("cargo::rerun-if-changed=../docs"); // a new page
    let mut tests = String::new();
    for page in pages {
        println!("cargo::rerun-if-changed={}", page.display());
        let text = fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
        let name = page.display().to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let _ = writeln!(tests, "#[doc = {:?}]\nmod {} {{}}", surrounded(&text), name.trim_matches('_'));
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("pages.rs"), tests).expect("cargo's own folder can be written");
}

fn is_page(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "md")
}

/// The page with `BEFORE` and `AFTER` around each block of Rust.
fn surrounded(page: &str) -> String {
    let mut all = String::new();
    let mut block = None;
    for line in page.lines() {
        let fence = line.strip_prefix("```");
        let closes_rust = fence.is_some() && block == Some("rust");
        if closes_rust {
            hidden(AFTER, &mut all);
        }
        all.push_str(line);
        all.push('\n');
        block = match (fence, block) {
            (None, inside) => inside,
            (Some(_), Some(_)) => None,
            (Some(language), None) => Some(language.split(',').next().unwrap_or(language)),
        };
        if fence.is_some() && block == Some("rust") {
            hidden(BEFORE, &mut all);
        }
    }
    all
}

fn hidden(code: &str, all: &mut String) {
    for line in code.lines() {
        let _ = writeln!(all, "# {line}");
    }
}
