package config

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	// Time zones must be known in images without a zone database.
	_ "time/tzdata"

	"go.yaml.in/yaml/v4"
)

var (
	clientDomain = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)
	pgpSuffix    = regexp.MustCompile(`^\.[A-Za-z0-9][A-Za-z0-9.]{0,15}$`)
)

var defaultSegment = SegmentSettings{
	File:           FileFormat{Delimiter: ',', Quote: QuoteSpecial, LineEnd: "\n"},
	Compression:    NoCompression,
	RemoveOlder:    true,
	SplitRows:      500_000,
	RejectShare:    0.10,
	RejectedValues: Masked,
	TimeZone:       time.UTC,
	Guards:         Guards{Shrink: 0.5},
}

func readSegmentSettings(m *mapping) (*SegmentSettings, templateReader) {
	s := settings(m, "write at least client_domain and identifier")
	required := func(key, remedy string) {
		if !s.has(key) && !everyTemplateSets(m, key) {
			s.missing(key, remedy)
		}
	}
	required("client_domain", "write the client domain that Attentive gave you; file names begin with it")
	required("identifier", "write phone or email: what the files hold")
	result := readFileSettings(s, defaultSegment)
	result.RemoteFolder = get(s, "remote_folder", "/uploads", readFolder)
	result.Rename = get(s, "rename", RenamePlain, choice(RenamePlain, RenamePosix, RenameNone))
	if v, ok := s.lookup("rename"); ok && result.Rename == RenameNone {
		v.warn("is none: files can be seen while they are written", "use plain or posix, if the receiver allows it")
	}
	result.PGP = get(s, "pgp", nil, readPGP)
	templates := templateReader{
		plugin:   PluginSegments,
		settings: &result,
		region:   get(s, "default_region", "", readRegion),
		ids:      &ids{what: "template"},
	}
	s.done()
	return &result, templates
}

// everyTemplateSets reports whether the settings of every template of the
// destination have the key, so that those of the destination need not.
func everyTemplateSets(destination *mapping, key string) bool {
	templates, ok := destination.lookup("templates")
	if !ok || templates.node.Kind != yaml.SequenceNode || len(templates.node.Content) == 0 {
		return false
	}
	for _, node := range templates.node.Content {
		if child(child(templates.r.value(node, ""), "settings"), key).node == nil {
			return false
		}
	}
	return true
}

// child returns the value of a key; without a node when there is none.
func child(v value, key string) value {
	if v.node == nil || v.node.Kind != yaml.MappingNode {
		return value{}
	}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		if v.node.Content[i].Value == key {
			return v.r.value(v.node.Content[i+1], "")
		}
	}
	return value{}
}

// readFileSettings reads what a template may override; base holds what is not
// in s.
func readFileSettings(s *mapping, base SegmentSettings) SegmentSettings {
	result := base
	result.ClientDomain = get(s, "client_domain", base.ClientDomain, matching(clientDomain, "use letters, digits, dots and hyphens, at most 64"))
	result.Identifier = get(s, "identifier", base.Identifier, choice(Phone, Email))
	result.File = readFileFormat(s, base.File)
	result.Compression = get(s, "compression", base.Compression, choice(NoCompression, Gzip, Zip, Tar, TarGzip))
	if v, ok := s.lookup("compression"); ok && result.Compression != NoCompression && result.Compression != "" {
		v.warn(fmt.Sprintf("is %s, and Attentive reads files that end in .csv", result.Compression), "use none, unless Attentive has agreed to it")
	}
	result.SuccessFile = get(s, "success_file", base.SuccessFile, boolean)
	result.RemoveOlder = get(s, "remove_older", base.RemoveOlder, boolean)
	result.SplitRows = get(s, "split_rows", base.SplitRows, whole(1, 500_000))
	result.SplitMegabytes = get(s, "split_megabytes", base.SplitMegabytes, whole(1, 4096))
	result.RejectShare = get(s, "reject_share", base.RejectShare, share)
	result.RejectedValues = get(s, "rejected_values", base.RejectedValues, choice(Masked, Full))
	result.TimeZone = get(s, "time_zone", base.TimeZone, readTimeZone)
	result.Guards = get(s, "guards", base.Guards, readGuards(base.Guards))
	return result
}

// readFileFormat reads the keys that say how rows are written.
func readFileFormat(s *mapping, base FileFormat) FileFormat {
	f := FileFormat{
		Delimiter: readDelimiter(s, base.Delimiter),
		Escape:    get(s, "escape_character", base.Escape, mark),
		Quote:     get(s, "quote_mode", base.Quote, choice(QuoteAll, QuoteNonNull, QuoteSpecial, QuoteNonNumeric, QuoteNone)),
		LineEnd:   get(s, "line_ending", base.LineEnd, readLineEnd),
		Header:    get(s, "header", base.Header, boolean),
		RowNumber: get(s, "row_number", base.RowNumber, boolean),
	}
	for _, key := range []string{"escape_character", "delimiter", "file_format"} {
		if v, ok := s.lookup(key); ok && f.Escape != 0 && f.Escape == f.Delimiter {
			v.fault(fmt.Sprintf("makes %q both delimiter and escape character", f.Escape), "choose another for one of them")
			break
		}
	}
	if v, ok := s.lookup("quote_mode"); ok && f.Quote == QuoteNone && f.Escape == 0 {
		v.warn("is none without escape_character: rows that would need quotes are rejected, and segments whose names would, refused",
			`set escape_character: "\\", or use quote_mode special`)
	}
	for _, key := range []string{"header", "row_number"} {
		if v, ok := s.lookup(key); ok && v.scalar("!!bool") && boolean(v) {
			v.warn("is true, and Attentive takes two columns without a header", "remove it, unless Attentive has agreed to it")
		}
	}
	return f
}

const marks = "!#$%&'()*,/:;<=>?[\\]^`{|}~"

// mark reads a character that can be a delimiter or an escape character: none
// that phone numbers and most addresses have.
func mark(v value) byte {
	s := text(v)
	if s == "" {
		return 0
	}
	if len(s) != 1 || !strings.Contains(marks, s) {
		v.fault(fmt.Sprintf("is %q", s), "write one of "+marks)
		return 0
	}
	return s[0]
}

// readDelimiter reads file_format and delimiter.
func readDelimiter(s *mapping, base byte) byte {
	const custom = "custom"
	formats := map[string]byte{"csv": ',', "tsv": '\t', "psv": '|'}
	format := get(s, "file_format", "", choice("csv", "tsv", "psv", custom))
	delimiter := get(s, "delimiter", 0, mark)
	v, ok := s.lookup("delimiter")
	switch {
	case ok && format != custom:
		v.fault("is there without file_format: custom", "write file_format: custom beside it, or remove it")
	case ok:
		return delimiter
	case format == custom:
		s.missing("delimiter", `file_format custom needs one, as delimiter: ";"`)
	case format != "":
		return formats[format]
	}
	return base
}

func readLineEnd(v value) string {
	return map[string]string{"lf": "\n", "crlf": "\r\n"}[choice("lf", "crlf")(v)]
}

func readFolder(v value) string {
	s := text(v)
	if s == "" {
		return ""
	}
	if slices.Contains(strings.Split(s, "/"), "..") || strings.Contains(s, `\`) {
		v.fault(fmt.Sprintf("is %q", s), `write a folder as /uploads, without ".." and backslashes`)
		return ""
	}
	return path.Clean(s)
}

func readPGP(v value) *PGP {
	const remedy = "list the public key files of those who decrypt"
	m := v.mapping()
	p := &PGP{
		Keys:   need(m, "keys", remedy, someOf(file, remedy)),
		Armor:  get(m, "armor", false, boolean),
		Suffix: get(m, "suffix", ".pgp", matching(pgpSuffix, "write a dot and letters or digits, as .pgp")),
	}
	m.done()
	return p
}

func readTimeZone(v value) *time.Location {
	s := text(v)
	if s == "" {
		return time.UTC
	}
	zone, err := time.LoadLocation(s)
	if err != nil || s == "Local" {
		v.fault(fmt.Sprintf("is %q", s), "write a name of the time zone database, as UTC or America/New_York")
		return time.UTC
	}
	return zone
}

func readGuards(base Guards) func(value) Guards {
	return func(v value) Guards {
		m := v.mapping()
		g := Guards{Shrink: get(m, "shrink", base.Shrink, share)}
		m.done()
		return g
	}
}
