// Package source reads the rows of an audience from where its job says they are.
//
// A Reader hands out one row at a time and holds one block of the source, so its
// memory does not grow with the source: 256 KiB, four times that once a row is
// longer, and at most 16 MiB for decompression. Parquet, which is read from its end,
// is kept in an encrypted temporary file, and takes the memory of a page of each
// column in use.
//
// The rows of a source count only together. A compressed source that was cut
// short, a digest that does not match and an object that was damaged are found at
// the end, so whatever is made from the rows must stay invisible until Next has
// returned io.EOF, which it does after all of these checks. No other error of this
// package is or wraps io.EOF.
//
// Errors carry a fault.Class: what is wrong with the source is Permanent, a
// connection or a disk that fails is Retryable. They name the source and the number
// of the row, never what the row holds.
package source

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"attentive.internal/pkg/config"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/fault"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/nats-io/nats.go/jetstream"
)

// Limits on what one source may hold.
const (
	// MaxRowBytes is the longest row, with all its columns and line ends.
	MaxRowBytes = 1 << 20
	// MaxColumns is how many columns a source may have; of NDJSON, how many
	// different keys in all its rows.
	MaxColumns = 4096
	// maxNameBytes is the longest name of a column.
	maxNameBytes = 1024
)

// Config says where sources may lie.
type Config struct {
	// Objects is the object store of sources named by object, and JetStream what it
	// is kept in.
	Objects   jetstream.ObjectStore
	JetStream jetstream.JetStream
	// Prefixes of URLs that sources may lie below (source_prefixes). None: no URL
	// is allowed.
	Prefixes []string
	// S3 is the service of s3 URLs.
	S3 S3
	// Limits on one source; the zero value means those of the contract.
	Limits Limits
}

// Limits are the most that one source may hold. What passes them is TooLarge.
type Limits struct {
	Rows uint64
	// Bytes as they are stored, and once more unpacked.
	Bytes uint64
}

// LimitsOf returns the limits that a configuration sets.
func LimitsOf(l config.SourceLimits) Limits {
	return Limits{Rows: uint64(l.Rows), Bytes: uint64(l.Megabytes) << 20} //nolint:gosec // at least 1
}

// Opener opens sources. It may be used by several goroutines at once.
type Opener struct {
	objects   jetstream.ObjectStore
	js        jetstream.JetStream
	prefixes  prefixes
	transport *http.Transport
	buckets   *buckets
	limits    Limits
	patience  patience
}

// New returns an Opener, or an error that names every prefix that is none, and an
// S3 service that is none.
func New(cfg Config) (*Opener, error) {
	o := &Opener{objects: cfg.Objects, js: cfg.JetStream, transport: newTransport(), limits: cfg.Limits, patience: defaultPatience()}
	o.limits.Rows = cmp.Or(o.limits.Rows, contract.MaxSourceRows)
	o.limits.Bytes = cmp.Or(o.limits.Bytes, contract.MaxSourceBytes)
	var errs [2]error
	o.prefixes, errs[0] = parsePrefixes(cfg.Prefixes)
	o.buckets, errs[1] = newBuckets(cfg.S3, o.transport)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return o, nil
}

// Open begins to read s, up to and with the row that names its columns. The
// Reader ends with ctx; the caller closes it.
func (o *Opener) Open(ctx context.Context, s *attentivev1.Source) (*Reader, error) {
	name := describe(s)
	raw, size, err := o.locate(ctx, s, name)
	if err != nil {
		return nil, err
	}
	if size > 0 && uint64(size) > o.limits.Bytes {
		return nil, errors.Join(tooManyBytes(name, o.limits.Bytes), raw.Close())
	}
	r := &Reader{
		name:   name,
		limits: o.limits,
		stored: &stored{ended: func() error { return context.Cause(ctx) }, r: bounded(raw, o.limits.Bytes, name)},
		want:   s.GetSha256(),
		close:  []io.Closer{raw},
	}
	if object, ok := raw.(*objectReader); ok {
		r.print.SHA256 = [sha256.Size]byte(object.digest)
	} else {
		r.stored.hash = sha256.New()
	}
	if err := r.begin(s); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Bytes opens s as it is stored, neither unpacked nor judged, for whoever looks for
// something in it. It ends with ctx; the caller closes it.
func (o *Opener) Bytes(ctx context.Context, s *attentivev1.Source) (io.ReadCloser, error) {
	raw, _, err := o.locate(ctx, s, describe(s))
	return raw, err
}

// locate opens the stored bytes of s. A size below zero is not known.
func (o *Opener) locate(ctx context.Context, s *attentivev1.Source, name string) (raw io.ReadCloser, size int64, err error) {
	switch location := s.GetLocation().(type) {
	case *attentivev1.Source_Inline:
		return io.NopCloser(bytes.NewReader(location.Inline)), int64(len(location.Inline)), nil
	case *attentivev1.Source_Object:
		return o.openObject(ctx, location.Object, name)
	case *attentivev1.Source_Url:
		return o.openURL(ctx, location.Url, name)
	}
	return nil, 0, fault.Permanentf(fault.InvalidMessage, "read source: it has no location; set inline, object or url")
}

// tooManyBytes is a source that passes the limit.
func tooManyBytes(name string, limit uint64) error {
	return fault.Permanentf(fault.TooLarge,
		"read %s: it has more than %d MiB, the limit of one source (source_limits.megabytes); send it as several", name, limit>>20)
}

// bounded fails once more than limit bytes have come: what unpacks to more than
// anybody meant ends here.
func bounded(r io.Reader, limit uint64, name string) io.Reader {
	return &boundedReader{r: r, limit: limit, name: name}
}

type boundedReader struct {
	r           io.Reader
	read, limit uint64
	name        string
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.read += uint64(n); b.read > b.limit { //nolint:gosec // a count
		return 0, tooManyBytes(b.name, b.limit)
	}
	return n, err
}

// describe names s in errors: without the bytes of an inline source, and
// without the parts of a URL that may hold a secret.
func describe(s *attentivev1.Source) string {
	switch location := s.GetLocation().(type) {
	case *attentivev1.Source_Object:
		return fmt.Sprintf("object %q", location.Object)
	case *attentivev1.Source_Url:
		url, _, _ := strings.Cut(location.Url, "?")
		if scheme, rest, ok := strings.Cut(url, "://"); ok {
			host, path, _ := strings.Cut(rest, "/")
			url = scheme + "://" + host[strings.LastIndexByte(host, '@')+1:] + "/" + path
		}
		return fmt.Sprintf("url %q", url)
	}
	return "the inline source"
}

// Kind is the type that a value had in its source.
type Kind uint8

const (
	// Empty is an empty or missing value, or null.
	Empty Kind = iota
	// String is text. All values of CSV are Empty or String.
	String
	// Number is a number of NDJSON, in its own spelling, or of Parquet.
	Number
	// Boolean is true or false of NDJSON or Parquet.
	Boolean
)

// Value is one column of a row. Text is empty exactly when Kind is Empty. It is as
// the source has it, of Parquet as package parquet writes it; in CSV it need not be valid UTF-8.
type Value struct {
	Text []byte
	Kind Kind
}

// Row is one row of a source.
type Row struct {
	// Number counts rows from 1, without the row that names the columns and
	// without blank lines.
	Number uint64
	// Values by column, as many as Columns names. They and their texts are valid
	// until the next call of Next.
	Values []Value
}

// decoder reads rows. Its errors are those of its reader, io.EOF, or a
// *formatError.
type decoder interface {
	next() (Row, error)
	columns() []string
	// column returns the index of the column called name, or -1 when the source
	// cannot have one.
	column(name string) int
}

// formatError says what is wrong with a row, without showing it.
type formatError struct {
	row  uint64 // zero: the row that names the columns
	text string
}

func (e *formatError) Error() string {
	if e.row == 0 {
		return "the first row, which names the columns: " + e.text
	}
	return "row " + strconv.FormatUint(e.row, 10) + ": " + e.text
}

// Reader reads one source. It is used by one goroutine at a time.
type Reader struct {
	name    string
	limits  Limits
	stored  *stored
	decoder decoder
	want    []byte // sha256 of the stored bytes that the job names
	close   []io.Closer
	end     error // what Next returns from now on
	print   Fingerprint
}

// begin puts the layers above the stored bytes together.
func (r *Reader) begin(s *attentivev1.Source) error {
	plain, err := r.decompress(s.GetCompression())
	if err != nil {
		return r.classify(err)
	}
	if s.GetCompression() != attentivev1.Compression_COMPRESSION_UNSPECIFIED {
		plain = bounded(plain, r.limits.Bytes, r.name)
	}
	if s.GetFormat() == attentivev1.Format_FORMAT_PARQUET {
		if r.decoder, err = r.newTable(plain); err != nil {
			return r.classify(err)
		}
		return nil
	}
	if plain, err = r.decodeText(plain, s.GetEncoding()); err != nil {
		return err
	}
	switch s.GetFormat() {
	case attentivev1.Format_FORMAT_CSV:
		delimiter, ok := delimiterOf(s.GetDelimiter())
		if !ok {
			return fault.Permanentf(fault.InvalidMessage,
				"read %s: delimiter %q is not one ASCII character other than a quote and line ends", r.name, s.GetDelimiter())
		}
		r.decoder, err = newCSV(plain, delimiter)
	case attentivev1.Format_FORMAT_NDJSON:
		r.decoder = newNDJSON(plain)
	default:
		return fault.Permanentf(fault.InvalidMessage, "read %s: it has no format this worker knows; set CSV, NDJSON or Parquet", r.name)
	}
	if err != nil {
		return r.classify(err)
	}
	return nil
}

// Columns names the columns by index: of CSV all of them, of Parquet all that are
// neither nested nor repeated, of NDJSON those of the
// rows read so far and those asked for by Column.
func (r *Reader) Columns() []string { return slices.Clone(r.decoder.columns()) }

// Column returns the index of a column in Row.Values. A source of CSV or Parquet
// without it is at fault (ColumnMissing); rows of an NDJSON source that lack the key
// have an empty value. Columns of Parquet must be asked for before the first row:
// the others are not read and stay empty.
func (r *Reader) Column(name string) (int, error) {
	if i := r.decoder.column(name); i >= 0 {
		return i, nil
	}
	t, ok := r.decoder.(*tableReader)
	switch {
	case ok && t.file.PassedOver(name):
		return 0, fault.Permanentf(fault.ColumnMissing,
			"read %s: column %q is nested, repeated or of a type without text; only flat columns are read", r.name, name)
	case ok:
		return 0, fault.Permanentf(fault.ColumnMissing, "read %s: column %q is not among its %d flat columns", r.name, name, len(t.names))
	}
	// The columns are counted, not listed: without a row of names they would be
	// somebody's data.
	return 0, fault.Permanentf(fault.ColumnMissing,
		"read %s: column %q is not among its %d columns; its first row must name the columns", r.name, name, len(r.decoder.columns()))
}

// rowsBetweenLooks is how many rows are read between two looks whether to go on.
const rowsBetweenLooks = 1024

// Next returns the next row. It returns io.EOF after the last one, once the stored
// bytes have been read to their end and found to be those the job names; only then
// may the rows be trusted. After an error it returns that error again.
func (r *Reader) Next() (Row, error) {
	if r.end != nil {
		return Row{}, r.end
	}
	row, err := r.decoder.next()
	if err == nil && row.Number%rowsBetweenLooks == 0 {
		// What is decoded may all be in memory or on the disk.
		err = r.stored.look()
	}
	if err == nil && row.Number <= r.limits.Rows {
		return row, nil
	}
	if err == nil {
		err = fault.Permanentf(fault.TooLarge,
			"read %s: it has more than %d rows, the limit of one source (source_limits.rows); send it as several", r.name, r.limits.Rows)
	}
	if errors.Is(err, io.EOF) {
		err = r.finish()
	}
	if !errors.Is(err, io.EOF) {
		err = r.classify(err)
	}
	r.end = err
	return Row{}, err
}

// finish checks the stored bytes as a whole and returns io.EOF when they are good.
func (r *Reader) finish() error {
	rest, err := io.Copy(io.Discard, r.stored)
	if err != nil {
		return err
	}
	if rest > 0 {
		return &tailError{bytes: rest}
	}
	r.print.Size = r.stored.size
	if r.stored.hash != nil {
		r.stored.hash.Sum(r.print.SHA256[:0])
	}
	if len(r.want) > 0 && !slices.Equal(r.want, r.print.SHA256[:]) {
		return fault.Permanentf(fault.SourceChanged,
			"read %s: its sha256 is %x over %d bytes, the job names %x; it was changed after the job was made",
			r.name, r.print.SHA256, r.print.Size, r.want)
	}
	return io.EOF
}

// tailError is what follows the end of a compressed source.
type tailError struct{ bytes int64 }

func (e *tailError) Error() string { return fmt.Sprintf("%d bytes follow its end", e.bytes) }

// classify says what err means for the job. The failure of the stored bytes
// outranks what it did to the layers above.
func (r *Reader) classify(err error) error {
	if r.stored.err != nil {
		err = r.stored.err
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if r.stored.err != nil {
		return opaque(fmt.Sprintf("read %s", r.name), err)
	}
	return fault.Permanentf(fault.SourceUnreadable, "read %s: %v", r.name, err)
}

// opaque wraps err, but not one that holds io.EOF: a writer that is fed from a
// Reader would take it for the end.
func opaque(operation string, err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New(operation + ": " + err.Error())
	}
	return fmt.Errorf("%s: %w", operation, err)
}

// Fingerprint returns what identifies the stored bytes. It is zero until Next
// has returned io.EOF.
func (r *Reader) Fingerprint() Fingerprint {
	if !errors.Is(r.end, io.EOF) {
		return Fingerprint{}
	}
	return r.print
}

// Stored returns how many stored bytes have been read so far.
func (r *Reader) Stored() uint64 { return r.stored.size }

// Close releases what the Reader holds. It does not read to the end.
func (r *Reader) Close() error {
	var errs []error
	for _, c := range slices.Backward(r.close) {
		errs = append(errs, c.Close())
	}
	r.close = nil
	if r.end == nil {
		r.end = fmt.Errorf("read %s: it is closed", r.name)
	}
	return errors.Join(errs...)
}

// Fingerprint identifies the stored bytes of a source, so that two readings of it
// can be compared with "==". Its text form is "sha256:<hex>/<size>".
type Fingerprint struct {
	SHA256 [sha256.Size]byte
	Size   uint64
}

// String returns the text form.
func (f Fingerprint) String() string {
	return "sha256:" + hex.EncodeToString(f.SHA256[:]) + "/" + strconv.FormatUint(f.Size, 10)
}

// MarshalText returns the text form.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads the text form.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	digest, size, ok := strings.Cut(strings.TrimPrefix(string(text), "sha256:"), "/")
	sum, err := hex.DecodeString(digest)
	n, sizeErr := strconv.ParseUint(size, 10, 64)
	if err = errors.Join(err, sizeErr); err != nil || !ok || len(sum) != sha256.Size {
		return fmt.Errorf("fingerprint %q: is not of the form sha256:<64 hex digits>/<size>", text)
	}
	f.SHA256, f.Size = [sha256.Size]byte(sum), n
	return nil
}
