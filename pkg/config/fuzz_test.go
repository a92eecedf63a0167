package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// FuzzRead reads any bytes as a configuration: they give faults with a place,
// or a configuration that keeps its promises.
func FuzzRead(f *testing.F) {
	seeds, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	more, err := filepath.Glob("testdata/faults/*.yaml")
	if err != nil || len(more) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, path := range append(seeds, more...) {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &reader{path: "testdata/fuzz.yaml"}
		cfg := r.parse(data)
		for _, fault := range slices.Concat(r.faults, r.warnings) {
			if fault.Line < 1 || fault.Column < 1 || fault.Problem == "" || fault.Remedy == "" {
				t.Errorf("fault without a place, problem or remedy: %+v", fault)
			}
			if strings.ContainsAny(fault.String(), "\n\r") {
				t.Errorf("fault on several lines: %q", fault)
			}
		}
		if len(r.faults) == 0 {
			promises(t, cfg)
		}
	})
}

// promises checks what the workers rely on without looking.
func promises(t *testing.T, cfg *Config) {
	t.Helper()
	if cfg == nil || len(cfg.Destinations) == 0 {
		t.Fatal("neither faults nor destinations")
	}
	for _, d := range cfg.Destinations {
		c, ok := cfg.Credential(d.Credential)
		if !ok || c.Account() == "" {
			t.Errorf("destination %q has no credential", d.ID)
		}
		if !idPattern.MatchString(d.ID) || d.Name == "" || len(d.Templates) == 0 {
			t.Errorf("destination %+v lacks id, name or templates", d)
		}
		var identifier Identifier
		switch {
		case d.Plugin == PluginSegments && d.Segment != nil && d.Attributes == nil && c.SFTP != nil:
			if d.Segment.RemoteFolder == "" {
				t.Errorf("settings %+v", d.Segment)
			}
		case d.Plugin == PluginAttributes && d.Attributes != nil && d.Segment == nil && c.API != nil:
			identifier = d.Attributes.Identifier
			if ceilings := c.API.Ceilings; ceilings.Attributes < 1 || ceilings.Subscribe < 1 || ceilings.Unsubscribe < 1 ||
				ceilings.Bulk < 1 || ceilings.BulkStatus < 1 {
				t.Errorf("ceilings %+v", ceilings)
			}
		default:
			t.Errorf("destination %q does not fit its plugin %q", d.ID, d.Plugin)
		}
		for _, template := range d.Templates {
			if s := template.Segment; s != nil {
				identifier = s.Identifier
				if s.TimeZone == nil || s.SplitRows < 1 || s.ClientDomain == "" || s.File.Delimiter == 0 || s.File.LineEnd == "" || s.File.Delimiter == s.File.Escape {
					t.Errorf("settings %+v", s)
				}
			}
			if !idPattern.MatchString(template.ID) || template.Columns.Of(identifier) == "" {
				t.Errorf("template %+v lacks id or identifier", template)
			}
		}
	}
}
