//! Tables of text: CSV, TSV and their relatives.

use crate::file;
use csv::StringRecord;
use orkest_core::{Error, Result, Tensor};
use std::path::Path;

/// What pandas' `read_csv` takes for a missing value.
const MISSING: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
    "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
];

/// A table whose columns have names, as read from a CSV or TSV file.
///
/// ```
/// use orkest_data::Table;
/// let csv = "text,rating\n\"good, really\",5\nNA,\n";
/// let table = Table::parse_csv(csv, "reviews.csv")?;
/// assert_eq!(table.column::<String>("text")?, ["good, really", "NA"]);
/// assert_eq!(table.optional::<String>("text")?, [Some("good, really".into()), None]);
/// assert_eq!(table.optional::<f64>("rating")?, [Some(5.0), None]);
/// assert_eq!(
///     table.column::<f64>("rating").unwrap_err().to_string(),
///     "reviews.csv, line 3: rating is missing"
/// );
/// # Ok::<(), orkest_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Table {
    name: String,
    columns: Vec<String>,
    rows: Vec<StringRecord>,
}

impl Table {
    /// Reads a file, gzipped or not, whose first line names the columns: separated by tabs if it is called `.tsv` (or `.tsv.gz`), by
    /// commas else. Fields in double quotes may contain separators and line breaks.
    ///
    /// # Errors
    /// If the file cannot be read, is not UTF-8, or a row has another number of fields than the first.
    pub fn read(path: impl AsRef<Path>) -> Result<Table> {
        TableOptions::for_path(path.as_ref()).read(path)
    }

    /// Reads text separated by commas; `name` is for messages.
    ///
    /// # Errors
    /// If it is not UTF-8, or a row has another number of fields than the first.
    pub fn parse_csv(bytes: impl AsRef<[u8]>, name: &str) -> Result<Table> {
        TableOptions::csv().parse(bytes, name)
    }

    /// Reads text separated by tabs; `name` is for messages.
    ///
    /// # Errors
    /// If it is not UTF-8, or a row has another number of fields than the first.
    pub fn parse_tsv(bytes: impl AsRef<[u8]>, name: &str) -> Result<Table> {
        TableOptions::tsv().parse(bytes, name)
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The fields of a column.
    ///
    /// # Errors
    /// If there is no such column, or a field is missing or something else than `T`. An empty text is a text.
    pub fn column<T: Field>(&self, name: &str) -> Result<Vec<T>> {
        let at = self.find(name)?;
        let field = |(row, record): (usize, &StringRecord)| {
            let text = T::field(&record[at]);
            match T::parse(text) {
                Some(value) if T::TEXT || !is_missing(text) => Ok(value),
                _ if is_missing(text) => Err(self.error(row, format!("{name} is missing"))),
                _ => Err(self.error(row, format!("{name} {text:?} is not {}", T::EXPECTED))),
            }
        };
        self.rows.iter().enumerate().map(field).collect()
    }

    /// The fields of a column, `None` where pandas would see a missing value: an empty field, `NA`, `null`, `NaN` and so on.
    ///
    /// # Errors
    /// If there is no such column, or a field is something else than `T`.
    pub fn optional<T: Field>(&self, name: &str) -> Result<Vec<Option<T>>> {
        let at = self.find(name)?;
        let field = |(row, record): (usize, &StringRecord)| {
            let text = T::field(&record[at]);
            if is_missing(text) {
                return Ok(None);
            }
            let wrong = || self.error(row, format!("{name} {text:?} is not {}", T::EXPECTED));
            T::parse(text).map(Some).ok_or_else(wrong)
        };
        self.rows.iter().enumerate().map(field).collect()
    }

    /// Columns of numbers side by side as an f32 tensor.
    ///
    /// # Shapes
    /// - output: `[rows, columns]`
    ///
    /// # Errors
    /// If there is no such column, or a field is missing or no number.
    pub fn tensor(&self, names: &[&str]) -> Result<Tensor> {
        let columns = names.iter().map(|name| self.column::<f32>(name)).collect::<Result<Vec<_>>>()?;
        let values: Vec<f32> = (0..self.len()).flat_map(|row| columns.iter().map(move |c| c[row])).collect();
        Ok(Tensor::from_slice(&values, [self.len(), names.len()], ()))
    }

    /// An error about a row (counted from 0) that names the file and the line: for checks of one's own.
    pub fn error(&self, row: usize, problem: impl Into<String>) -> Error {
        let line = self.rows.get(row).and_then(StringRecord::position).map_or(0, csv::Position::line);
        Error::Data(format!("{}, line {line}: {}", self.name, problem.into()))
    }

    fn find(&self, name: &str) -> Result<usize> {
        self.columns.iter().position(|c| c == name).ok_or_else(|| {
            Error::Data(format!(
                "{}: column {name:?} is missing; the header has {:?}",
                self.name, self.columns
            ))
        })
    }
}

fn is_missing(text: &str) -> bool {
    MISSING.contains(&text)
}

/// How a table is written down.
///
/// ```
/// use orkest_data::TableOptions;
/// let table = TableOptions::csv().delimiter(b';').header(false).parse("1;2\n3;4\n", "numbers")?;
/// assert_eq!(table.column::<i64>("1")?, [2, 4]); // columns without names are numbered
/// # Ok::<(), orkest_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TableOptions {
    delimiter: u8,
    quoting: bool,
    header: bool,
}

impl TableOptions {
    /// Commas and quotes, the first line a header.
    pub fn csv() -> TableOptions {
        TableOptions { delimiter: b',', quoting: true, header: true }
    }

    /// Tabs and quotes, the first line a header.
    pub fn tsv() -> TableOptions {
        TableOptions { delimiter: b'\t', ..TableOptions::csv() }
    }

    fn for_path(path: &Path) -> TableOptions {
        let name = path.to_string_lossy().to_ascii_lowercase();
        match name.strip_suffix(".gz").unwrap_or(&name).ends_with(".tsv") {
            true => TableOptions::tsv(),
            false => TableOptions::csv(),
        }
    }

    /// The byte between two fields.
    pub fn delimiter(mut self, delimiter: u8) -> TableOptions {
        self.delimiter = delimiter;
        self
    }

    /// With `false`, double quotes are characters like any other, as in many TSV files of texts.
    pub fn quoting(mut self, quoting: bool) -> TableOptions {
        self.quoting = quoting;
        self
    }

    /// With `false`, there is no header, and the columns are called `0`, `1` and so on.
    pub fn header(mut self, header: bool) -> TableOptions {
        self.header = header;
        self
    }

    /// Reads a file, gzipped or not.
    ///
    /// # Errors
    /// If the file cannot be read, is not UTF-8, or a row has another number of fields than the first.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Table> {
        let path = path.as_ref();
        self.parse(file::read(path)?, &path.display().to_string())
    }

    /// Reads text; `name` is for messages.
    ///
    /// # Errors
    /// If it is not UTF-8, or a row has another number of fields than the first.
    pub fn parse(&self, bytes: impl AsRef<[u8]>, name: &str) -> Result<Table> {
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(self.delimiter)
            .quoting(self.quoting)
            .has_headers(self.header)
            .from_reader(file::without_bom(bytes.as_ref()));
        let header = reader.headers().map_err(|e| row_error(&e, name))?.clone();
        let columns: Vec<String> = match self.header {
            true => header.iter().map(|c| c.trim().to_owned()).collect(),
            false => (0..header.len()).map(|i| i.to_string()).collect(),
        };
        if let Some((i, twice)) = columns.iter().enumerate().find(|(i, c)| columns[..*i].contains(c)) {
            return Err(Error::Data(format!("{name}: columns {i} and before are both called {twice:?}")));
        }
        let rows = reader.records().collect::<csv::Result<_>>().map_err(|e| row_error(&e, name))?;
        Ok(Table { name: name.to_owned(), columns, rows })
    }
}

fn row_error(error: &csv::Error, name: &str) -> Error {
    let problem = match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "is not valid UTF-8 text".to_owned(),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("has {len} fields, the first line {expected_len}")
        }
        _ => error.to_string(),
    };
    let line = error.position().map_or(1, csv::Position::line);
    Error::Data(format!("{name}, line {line}: {problem}"))
}

/// What a field of a [`Table`] can be read as.
pub trait Field: Sized {
    /// For messages: `a number`.
    const EXPECTED: &'static str;
    /// True if the spaces around a field belong to it, and an empty field is a value.
    const TEXT: bool = false;

    /// The part of a field that counts.
    fn field(text: &str) -> &str {
        if Self::TEXT { text } else { text.trim() }
    }

    /// The value, if the text (what [`Field::field`] gave) is one.
    fn parse(text: &str) -> Option<Self>;
}

impl Field for String {
    const EXPECTED: &'static str = "text";
    const TEXT: bool = true;

    fn parse(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
}

macro_rules! number_fields {
    ($($t:ty: $expected:literal),*) => {$(
        impl Field for $t {
            const EXPECTED: &'static str = $expected;
            fn parse(text: &str) -> Option<$t> {
                text.parse().ok()
            }
        }
    )*};
}
number_fields!(
    f32: "a number",
    f64: "a number",
    i64: "an integer",
    i32: "an integer of 32 bits",
    u8: "an integer from 0 to 255",
    usize: "a count"
);

impl Field for bool {
    const EXPECTED: &'static str = "true or false";

    fn parse(text: &str) -> Option<bool> {
        match text {
            "true" | "True" | "TRUE" | "1" => Some(true),
            "false" | "False" | "FALSE" | "0" => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_in_quotes_span_lines_and_errors_count_them() {
        let csv = "\u{feff}id, name \n1,\"two\nlines, \"\"quoted\"\"\"\n x,y\n";
        let table = Table::parse_csv(csv, "t.csv").unwrap();
        assert_eq!(table.columns(), ["id", "name"]);
        assert_eq!(table.column::<String>("name").unwrap(), ["two\nlines, \"quoted\"", "y"]);
        let message = table.column::<i64>("id").unwrap_err().to_string();
        assert_eq!(message, "t.csv, line 4: id \"x\" is not an integer");
        let message = table.column::<i64>("age").unwrap_err().to_string();
        assert_eq!(message, "t.csv: column \"age\" is missing; the header has [\"id\", \"name\"]");
    }

    #[test]
    fn rows_that_are_no_rows_are_named() {
        let message = |bytes: &[u8]| Table::parse_csv(bytes, "t").unwrap_err().to_string();
        assert_eq!(message(b"a,b\n1,2\n3\n"), "t, line 3: has 1 fields, the first line 2");
        assert_eq!(message(b"a,b\n1,\xff\n"), "t, line 2: is not valid UTF-8 text");
        assert!(message(b"a,a\n").contains("both called \"a\""));
    }

    #[test]
    fn tabs_without_quoting_keep_quotes() {
        let options = TableOptions::tsv().quoting(false);
        let table = options.parse("text\tlabel\n\"so-called\t1\n", "t").unwrap();
        assert_eq!(table.column::<String>("text").unwrap(), ["\"so-called"]);
        assert_eq!(table.column::<bool>("label").unwrap(), [true]);
    }

    #[test]
    fn columns_make_a_tensor() {
        let table = Table::parse_csv("x,y,z\n1,2,3\n4,5,6\n", "t").unwrap();
        let x = table.tensor(&["z", "x"]).unwrap();
        assert_eq!(x.shape(), &[2, 2]);
        assert_eq!(x.to_vec::<f32>().unwrap(), [3.0, 1.0, 6.0, 4.0]);
        assert!(Table::parse_csv("x\nnan\n", "t").unwrap().tensor(&["x"]).is_err());
    }

    #[test]
    fn files_may_be_gzipped() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.tsv.gz");
        let mut file =
            flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), Default::default());
        file.write_all(b"a\tb\n1,5\t2\n").unwrap();
        file.finish().unwrap();
        assert_eq!(Table::read(&path).unwrap().column::<String>("a").unwrap(), ["1,5"]);
        let missing = folder.path().join("none.csv");
        assert!(Table::read(&missing).unwrap_err().to_string().contains("none.csv: cannot be read"));
        assert!(Table::read(folder.path()).unwrap_err().to_string().contains("is a directory"));
    }
}
