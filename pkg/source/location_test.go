package source_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"attentive.internal/pkg/fault"
	"attentive.internal/pkg/source"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/go-cmp/cmp"
)

func TestNewNamesEveryBadPrefix(t *testing.T) {
	t.Parallel()
	bad := []string{
		"audiences/", "ftp://host/x", "file://host/x", "file:relative", "https:///x", "s3://", "https://user:secret@host/", "file:///x?y", "https://host/#z", "%zz",
	}
	_, err := source.New(source.Config{Prefixes: append([]string{"file:///good", "s3://bucket/good/", "https://host", "file://localhost/x"}, bad...)})
	if err == nil {
		t.Fatal("New accepts bad prefixes")
	}
	for _, prefix := range bad {
		if !strings.Contains(err.Error(), prefix) {
			t.Errorf("error %q: does not name %q", err, prefix)
		}
	}
	if strings.Contains(err.Error(), "good") {
		t.Errorf("error %q: names a good prefix", err)
	}
}

// folders lays out an allowed folder and one beside it.
func folders(t *testing.T) (allowed string) {
	t.Helper()
	dir := t.TempDir()
	allowed = filepath.Join(dir, "allowed")
	for _, folder := range []string{"allowed/sub", "allowed-not", "secret"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"allowed/a.csv": "a\n1\n", "allowed/sub/b c.csv": "b\n2\n", "allowed-not/a.csv": "x\n", "secret/s.csv": "s\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"allowed/inside.csv":  "sub/b c.csv",
		"allowed/outside.csv": "../secret/s.csv",
		"allowed/up":          "../secret",
		"allowed/loop.csv":    "loop.csv",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "secret", "s.csv"), filepath.Join(allowed, "absolute.csv")); err != nil {
		t.Fatal(err)
	}
	return allowed
}

func at(url string) *attentivev1.Source {
	return &attentivev1.Source{
		Location: &attentivev1.Source_Url{Url: url},
		Format:   attentivev1.Format_FORMAT_CSV,
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	allowed := folders(t)
	tests := []struct {
		name, prefix, url string
		columns           []string
	}{
		{name: "below the prefix", prefix: allowed, url: "file://" + allowed + "/a.csv", columns: []string{"a"}},
		{name: "prefix with a slash", prefix: allowed + "/", url: "file://" + allowed + "/a.csv", columns: []string{"a"}},
		{name: "localhost", prefix: allowed, url: "file://localhost" + allowed + "/a.csv", columns: []string{"a"}},
		{name: "folder below", prefix: allowed, url: "file://" + allowed + "/sub/b%20c.csv", columns: []string{"b"}},
		{name: "dots that stay", prefix: allowed, url: "file://" + allowed + "/sub/../a.csv", columns: []string{"a"}},
		{name: "link that stays", prefix: allowed, url: "file://" + allowed + "/inside.csv", columns: []string{"b"}},
		{name: "everything allowed", prefix: "/", url: "file://" + allowed + "/a.csv", columns: []string{"a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o, err := source.New(source.Config{Prefixes: []string{"s3://elsewhere/", "file://" + tt.prefix}})
			if err != nil {
				t.Fatal(err)
			}
			r, err := o.Open(t.Context(), at(tt.url))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.columns, r.Columns()); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
			if rows, err := drain(t, r); err != nil || len(rows) != 1 {
				t.Errorf("rows %q, %v", rows, err)
			}
		})
	}
}

func TestURLFaults(t *testing.T) {
	t.Parallel()
	allowed := folders(t)
	if err := syscall.Mkfifo(filepath.Join(allowed, "pipe.csv"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(allowed, "socket.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	o, err := source.New(source.Config{Prefixes: []string{"file://" + allowed, "https://files.example.com/audiences", "s3://bucket/audiences/"}})
	if err != nil {
		t.Fatal(err)
	}
	outside := []string{"source_prefixes"}
	tests := []struct {
		name, url string
		reason    fault.Reason
		says      []string
	}{
		{"no such file", "file://" + allowed + "/nothing.csv", fault.SourceMissing, []string{"nothing.csv", "no such file"}},
		{"file used as a folder", "file://" + allowed + "/a.csv/b", fault.SourceMissing, nil},
		{"name too long", "file://" + allowed + "/" + strings.Repeat("x", 300), fault.SourceMissing, nil},
		{"NUL in the name", "file://" + allowed + "/a%00b", fault.SourceMissing, nil},
		{"outside", "file://" + filepath.Dir(allowed) + "/secret/s.csv", fault.SourceForbidden, outside},
		{"folder whose name begins alike", "file://" + allowed + "-not/a.csv", fault.SourceForbidden, outside},
		{"dots that leave", "file://" + allowed + "/../secret/s.csv", fault.SourceForbidden, outside},
		{"escaped dots that leave", "file://" + allowed + "/%2e%2e/secret/s.csv", fault.SourceForbidden, outside},
		{"escaped slash that leaves", "file://" + allowed + "/..%2Fsecret/s.csv", fault.SourceForbidden, outside},
		{"the prefix itself", "file://" + allowed, fault.SourceForbidden, outside},
		{"link that leaves", "file://" + allowed + "/outside.csv", fault.SourceForbidden, []string{"symbolic link", "source_prefixes"}},
		{"absolute link", "file://" + allowed + "/absolute.csv", fault.SourceForbidden, []string{"symbolic link"}},
		{"folder link that leaves", "file://" + allowed + "/up/s.csv", fault.SourceForbidden, []string{"symbolic link"}},
		{"link in a circle", "file://" + allowed + "/loop.csv", fault.SourceForbidden, []string{"symbolic link"}},
		{"folder", "file://" + allowed + "/sub", fault.SourceForbidden, []string{"not a regular file"}},
		{"named pipe", "file://" + allowed + "/pipe.csv", fault.SourceForbidden, []string{"not a regular file"}},
		{"socket", "file://" + allowed + "/socket.csv", fault.SourceForbidden, []string{"not a regular file"}},
		{"file on another host", "file://host" + allowed + "/a.csv", fault.SourceForbidden, []string{"file:///folder/file"}},
		{"file with a query", "file://" + allowed + "/a.csv?x", fault.SourceForbidden, []string{"file:///folder/file"}},
		{"relative file", "file:a.csv", fault.SourceForbidden, []string{"file:///folder/file"}},
		{"path without scheme", allowed + "/a.csv", fault.SourceForbidden, []string{"scheme"}},
		{"other scheme", "ftp://files.example.com/audiences/a.csv", fault.SourceForbidden, []string{"scheme"}},
		{"not a URL", "file://%zz", fault.SourceForbidden, []string{"not a valid URL"}},
		{"https outside", "https://files.example.com/other/a.csv", fault.SourceForbidden, outside},
		{"https of another host", "https://files.example.com.evil.example/audiences/a.csv", fault.SourceForbidden, outside},
		{"https with a password", "https://user:hush@files.example.com/audiences/a.csv", fault.SourceForbidden, []string{"user name"}},
		{"https with dots", "https://files.example.com/audiences/../audiences/a.csv?signature=hush", fault.SourceForbidden, outside},
		{"s3 with a query", "s3://bucket/audiences/a.csv?versionId=1", fault.SourceForbidden, []string{"query"}},
		{"s3 with an empty segment", "s3://bucket//audiences/a.csv", fault.SourceForbidden, outside},
		{"s3 outside", "s3://bucket/audiences-not/a.csv", fault.SourceForbidden, outside},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := o.Open(t.Context(), at(tt.url))
			wantFault(t, err, tt.reason, tt.says...)
			if strings.Contains(err.Error(), "hush") {
				t.Errorf("error %q shows a secret", err)
			}
		})
	}
}

// TestPrefixNotThere is a volume that is not mounted: the job has to wait for it.
func TestPrefixNotThere(t *testing.T) {
	t.Parallel()
	o, err := source.New(source.Config{Prefixes: []string{"file:///nowhere/at/all"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.Open(t.Context(), at("file:///nowhere/at/all/a.csv"))
	if f := fault.Of(err); err == nil || f.Class != fault.Blocked || f.Scope != fault.ScopeDestination || f.Reason != fault.Misconfigured {
		t.Errorf("error %v, want the destination blocked as misconfigured", err)
	}
}

func TestNoPrefixAllowsNothing(t *testing.T) {
	t.Parallel()
	_, err := open(t, at("file:///etc/hostname"))
	wantFault(t, err, fault.SourceForbidden, "source_prefixes")
}
