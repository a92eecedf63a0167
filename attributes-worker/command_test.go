package attributesworker_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	attributesworker "attentive.internal/attributes-worker"
	"attentive.internal/pkg/sandbox/sandboxtest"
)

// execute runs a command line with the rig's configuration, and fails the test
// unless it ends with the code and has said the texts.
func (r *rig) execute(args []string, code int, texts ...string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	var stdout, stderr bytes.Buffer
	got := attributesworker.Execute(ctx, append(args, "--config", r.config), &stdout, &stderr)
	said := stdout.String() + "--- standard error:\n" + stderr.String()
	if got != code {
		r.t.Fatalf("%v: exit %d, want %d\n%s", args, got, code, said)
	}
	for _, text := range texts {
		if !strings.Contains(said, text) {
			r.t.Errorf("%v: %q is missing\n%s", args, text, said)
		}
	}
}

// file writes a file beside the configuration and returns its path.
func (r *rig) file(name, text string) string {
	r.t.Helper()
	path := filepath.Join(filepath.Dir(r.config), name)
	r.write(path, text)
	return path
}

func TestSendCommand(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start()
	path := r.file("people.csv", "mobile,email,id,opt_in,color,points\n"+
		"(415) 555-2671,ana@example.com,c-1,yes,green,7.5\n+12125552671,,c-2,,red,2\n12,,c-3,,blue,1\n")
	r.execute([]string{"send", "--destination", destination, "--campaign", "nightly", "--file", path}, 0,
		"for "+destination+" published", "3 read", "1 rejected", "delivered; Attentive shows it within 24 hours")
	for _, phone := range []string{"+14155552671", "+12125552671"} {
		if _, found := r.sandbox.API().Subscriber(phone); !found {
			t.Errorf("%s did not arrive", phone)
		}
	}
}

func TestSendCommandIsExplained(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	good := r.file("good.csv", "mobile,email,id,opt_in,color,points\n+12125552671,,c-2,,red,2\n")
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no file", nil, 2, "no --file: name the file of rows"},
		{"unknown destination", []string{"--file", good, "--destination", "acme"}, 2, "known are " + destination},
		{"missing column", []string{"--file", r.file("short.csv", "mobile,email,id,opt_in,points\n+12125552671,,,,\n")}, 3, `column "color"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := &rig{t: t, config: r.config}
			r.execute(append([]string{"send", "--destination", destination, "--name", "nightly"}, tt.args...), tt.code, tt.want)
		})
	}
}

func TestCheckCommand(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.execute([]string{"check"}, 0, "ok       credential acme-api: api key: "+r.sandbox.APIURL(), "the key belongs to company")
	silent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"companyName": "Acme"}`) // a client that is gone is no failure
	}))
	defer silent.Close()
	r.also(r.sandbox.APIURL(), silent.URL).execute([]string{"check"}, 0, "warning  credential acme-api: api key: "+silent.URL, "companyId")
	r.file("key", "revoked")
	r.execute([]string{"check"}, 1, "failed   credential acme-api: api key: "+r.sandbox.APIURL(), "401")
	r.file("key", sandboxtest.Token)
	r.sandbox.Stop()
	r.execute([]string{"check", "--json"}, 1, `"outcome":"failed","subject":"credential acme-api"`, "check base_url and the way to it")
}
