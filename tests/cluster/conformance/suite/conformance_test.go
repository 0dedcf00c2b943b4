// Package suite is Gateway API's conformance suite as a program, of the version that go.mod names.
package suite

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
