package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	attentivev1 "attentive.internal/proto/attentive/v1"

	"attentive.internal/pkg/cli/progress"
	"attentive.internal/pkg/source"
)

// maxInlineBytes is the most that travels inside the message, over all files of
// a job. More goes to the object store.
const maxInlineBytes = 512 << 10

// encoding is how files are written, as far as flags say; the rest is told by
// their names.
type encoding struct {
	format, compression, delimiter, charset string
}

func (e *encoding) flags(f *pflag.FlagSet) {
	f.StringVar(&e.format, "format", "", "csv, ndjson or parquet (default: by the file's ending: .csv, .tsv, .ndjson, .jsonl, .parquet)")
	f.StringVar(&e.compression, "compression", "", "none, gzip or zstd (default: by the file's ending: .gz, .zst)")
	f.StringVar(&e.delimiter, "delimiter", "", "what stands between the columns of CSV (default: a comma; a tab in .tsv)")
	f.StringVar(&e.charset, "encoding", "", "utf-8, utf-16le, utf-16be, iso-8859-1, iso-8859-15 or windows-1252 (default: utf-8, or utf-16 by its byte order mark)")
}

// apply sets how the file called path is written.
func (e *encoding) apply(s *attentivev1.Source, path string) error {
	format, compression, delimiter := told(path)
	switch cmp.Or(e.compression, compression) {
	case "none":
		s.Compression = attentivev1.Compression_COMPRESSION_UNSPECIFIED
	case "gzip":
		s.Compression = attentivev1.Compression_COMPRESSION_GZIP
	case "zstd":
		s.Compression = attentivev1.Compression_COMPRESSION_ZSTD
	default:
		return fmt.Errorf("--compression %q: use none, gzip or zstd", e.compression)
	}
	switch cmp.Or(e.format, format) {
	case "csv":
		s.Format = attentivev1.Format_FORMAT_CSV
	case "ndjson":
		s.Format = attentivev1.Format_FORMAT_NDJSON
	case "parquet":
		s.Format = attentivev1.Format_FORMAT_PARQUET
	case "":
		return fmt.Errorf("file %q: its ending does not tell how it is written; use --format csv, ndjson or parquet", path)
	default:
		return fmt.Errorf("--format %q: use csv, ndjson or parquet", e.format)
	}
	s.Delimiter = cmp.Or(e.delimiter, delimiter)
	if e.charset == "" {
		return nil
	}
	name := "ENCODING_" + strings.ToUpper(strings.ReplaceAll(e.charset, "-", "_"))
	number, ok := attentivev1.Encoding_value[name]
	if !ok || number == 0 {
		return fmt.Errorf("--encoding %q: use utf-8, utf-16le, utf-16be, iso-8859-1, iso-8859-15 or windows-1252", e.charset)
	}
	s.Encoding = attentivev1.Encoding(number)
	return nil
}

// told returns what the name of a file tells, in the words of the flags; the
// format is empty when it tells nothing.
func told(path string) (format, compression, delimiter string) {
	name := strings.ToLower(filepath.Base(path))
	compression = "none"
	switch ending := filepath.Ext(name); ending {
	case ".gz":
		name, compression = strings.TrimSuffix(name, ending), "gzip"
	case ".zst":
		name, compression = strings.TrimSuffix(name, ending), "zstd"
	}
	switch filepath.Ext(name) {
	case ".csv":
		return "csv", compression, ""
	case ".tsv":
		return "csv", compression, "\t"
	case ".ndjson", ".jsonl":
		return "ndjson", compression, ""
	case ".parquet":
		return "parquet", compression, ""
	}
	return "", compression, ""
}

// locate decides how each file travels, inside the message or as an object named
// after the job, and fills its source but for digests.
func locate(files []File, job string, e *encoding) error {
	room := int64(maxInlineBytes)
	for i, f := range files {
		if err := e.apply(f.Source, f.Path); err != nil {
			return err
		}
		info, err := os.Stat(f.Path)
		if err != nil {
			return fmt.Errorf("file: %w; correct its path", err)
		}
		switch {
		case !info.Mode().IsRegular():
			return fmt.Errorf("file %q: is not a file with rows; name one", f.Path)
		case info.Size() == 0:
			return fmt.Errorf("file %q: is empty; its first row names the columns", f.Path)
		case info.Size() > room:
			name := fmt.Sprintf("%s/%d%s", job, i+1, endings(f.Path))
			f.Source.Location = &attentivev1.Source_Object{Object: name}
			continue
		}
		rows, err := os.ReadFile(f.Path)
		if err != nil {
			return fmt.Errorf("file: %w; let this user read it", err)
		}
		f.Source.Location = &attentivev1.Source_Inline{Inline: rows}
		room -= int64(len(rows))
	}
	return nil
}

// endings returns what follows the name proper: ".csv.gz".
func endings(path string) string {
	last := filepath.Ext(path)
	return filepath.Ext(strings.TrimSuffix(path, last)) + last
}

// reportRows is how many rows are read between two reports of progress.
const reportRows = 5000

// inspect reads the file as a worker will, so that what is wrong with it is
// known before anything is published, and returns the number of its rows. The
// columns must be there.
func (s *sender) inspect(ctx context.Context, f File, columns []string, line *progress.Line) (rows uint64, err error) {
	path, err := filepath.Abs(f.Path)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return 0, fmt.Errorf("file: %w; correct its path", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("file: %w", err)
	}
	opener, err := source.New(source.Config{Prefixes: []string{fileURL(filepath.Dir(path)) + "/"}, Limits: s.limits})
	if err != nil {
		return 0, fmt.Errorf("file %q: %w", f.Path, err)
	}
	r, err := opener.Open(ctx, &attentivev1.Source{
		Location:    &attentivev1.Source_Url{Url: fileURL(path)},
		Format:      f.Source.GetFormat(),
		Compression: f.Source.GetCompression(),
		Delimiter:   f.Source.GetDelimiter(),
		Encoding:    f.Source.GetEncoding(),
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for _, c := range columns {
		if _, err := r.Column(c); err != nil {
			return 0, fmt.Errorf("%w, or the template's columns name another", err)
		}
	}
	for {
		row, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
		if rows = row.Number; rows%reportRows == 0 {
			line.Bytes("reading "+filepath.Base(path), r.Stored(), uint64(info.Size())) //nolint:gosec // sizes are not negative
		}
	}
	digest := r.Fingerprint().SHA256
	if inline := f.Source.GetInline(); inline != nil && sha256.Sum256(inline) != digest {
		return 0, errChanged(f)
	}
	f.Source.Sha256 = digest[:]
	return rows, nil
}

// errChanged is a file that did not stay as it was inspected.
func errChanged(f File) error {
	return fmt.Errorf("file %q: was changed while it was sent; send it again", f.Path)
}

func fileURL(path string) string {
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(path)}).String()
}

// counted shows how much of a file has been read.
type counted struct {
	r     io.Reader
	line  *progress.Line
	what  string
	n     uint64
	total uint64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += uint64(n) //nolint:gosec // a count
	c.line.Bytes(c.what, c.n, c.total)
	return n, err
}
